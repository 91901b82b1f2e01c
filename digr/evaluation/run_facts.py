"""Facts of a run for the report, read from its artifacts; None for an artifact that does not exist."""

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import torch

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.rewards.calibration import EVALUATION

LOOKED_AT = 2000
"""Rows from which examples are drawn, so that the report's cost does not grow with the catalogue."""


def hardware() -> dict[str, Any]:
    """Describe this machine: processor, cores, memory, GPUs."""
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) / 2**20 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(memory[0], 1) if memory else None,
        "gpus": gpus,
        "system": f"{platform.system()} {platform.machine()}",
    }


def find_manifests(store: Store, names: Sequence[str]) -> dict[str, Manifest | None]:
    """Read the manifests of artifacts that may not exist."""
    return {name: artifacts.read_manifest(store, name) for name in names}


def mining_status(store: Store) -> list[dict[str, Any]] | None:
    """Count the responses of each miner and status, with their tokens and cost, in one streamed pass."""
    if artifacts.read_manifest(store, "interest_responses") is None:
        return None
    columns = ["miner", "status", "input_tokens", "output_tokens", "cost_usd"]
    sums = [(column, "sum") for column in columns[2:]] + [("responses", "sum")]
    total: pa.Table | None = None
    for batch in artifacts.iter_table(store, "interest_responses", columns):
        part = pa.table(batch.columns, names=batch.schema.names).append_column(
            "responses", pa.array(np.ones(len(batch), np.int64))
        )
        merged = part if total is None else pa.concat_tables([total, part.select(total.column_names)])
        found = merged.group_by(["miner", "status"]).aggregate(sums)
        total = found.rename_columns([name.removesuffix("_sum") for name in found.column_names])
    return [] if total is None else total.sort_by([("miner", "ascending"), ("status", "ascending")]).to_pylist()


def item_examples(store: Store, num: int, rng: np.random.Generator) -> list[dict[str, Any]] | None:
    """Draw items with their interests, strongest first, and each interest's label."""
    if artifacts.read_manifest(store, "interests") is None:
        return None
    items = artifacts.dataset_of(store, "items").head(LOOKED_AT, columns=["item_id", "title", "brand"])
    rows = items.take(np.sort(rng.permutation(len(items))[:num])).to_pylist()
    ids = [row["item_id"] for row in rows]
    name = (
        "interests" if artifacts.read_manifest(store, "interest_labels") is None else "interest_labels"
    )  # the same, with labels
    found = artifacts.read_table(store, name, owner=["item"], owner_id=ids).to_pylist()
    interests = {row["owner_id"]: row["interests"] for row in found}
    return [row | {"interests": interests.get(row["item_id"], [])} for row in rows]


def recommendation_examples(store: Store, num: int, k: int, rng: np.random.Generator) -> list[dict[str, Any]] | None:
    """Draw test examples of the served lists, with titles: history, target and the k best items with their reasons."""
    systems = ("ranked", "grpo", "sft")
    names = [name for name in (f"recommendations/{system}_test" for system in systems) if artifacts.read_manifest(store, name)]
    if not names:
        return None
    table = artifacts.dataset_of(store, names[0]).head(LOOKED_AT)
    lists = table.take(np.sort(rng.permutation(len(table))[:num])).to_pylist()
    examples = artifacts.read_table(store, "histories", example_id=[row["example_id"] for row in lists]).to_pylist()
    examples_by_id = {row["example_id"]: row for row in examples}
    wanted = {item for row in lists for item in row["item_ids"][:k]}
    wanted |= {item for row in examples for item in [*row["history"], row["target"]]}
    items = artifacts.read_table(store, "items", ["item_id", "title"], item_id=wanted).to_pylist()
    titles = {row["item_id"]: row["title"] for row in items}
    shown = []
    for row in lists:
        example = examples_by_id[row["example_id"]]
        reasons = row["reasons"] or [[]] * len(row["item_ids"])
        listed = zip(row["item_ids"][:k], row["scores"], reasons, strict=False)
        shown.append(
            {
                "example_id": row["example_id"],
                "history": [titles.get(item, item) for item in example["history"]],
                "target": titles.get(example["target"], example["target"]),
                "place": row["item_ids"].index(example["target"]) + 1 if example["target"] in row["item_ids"] else None,
                "items": [
                    {"title": titles.get(item, item), "score": score, "reasons": why, "hit": item == example["target"]}
                    for item, score, why in listed
                ],
            }
        )
    return shown


def rollout_examples(store: Store, num: int) -> list[dict[str, Any]] | None:
    """Return the roll-outs sampled at the last validations of GRPO, newest first, with titles; None if there are none."""
    samples = _json_lines(store, "policy_grpo", "rollouts.jsonl")
    if not samples:
        return None
    shown = samples[: -num - 1 : -1]
    history = artifacts.read_table(store, "histories", example_id=[row["example_id"] for row in shown]).to_pylist()
    histories = {row["example_id"]: row["history"] for row in history}
    wanted = {row["target"] for row in shown} | {item for items in histories.values() for item in items}
    wanted |= {one["item_id"] for row in shown for one in row["rollouts"]}
    items = artifacts.read_table(store, "items", ["item_id", "title"], item_id=wanted).to_pylist()
    titles = {row["item_id"]: row["title"] for row in items}
    return [
        {
            "step": row["step"],
            "history": [titles.get(item, item) for item in histories.get(row["example_id"], [])],
            "target": titles.get(row["target"], row["target"]),
            "rollouts": [one | {"title": titles.get(one["item_id"], one["item_id"])} for one in row["rollouts"]],
        }
        for row in shown
    ]


def training_log(store: Store, name: str) -> list[dict[str, Any]] | None:
    """Read the metrics log of a training; None if there is none.

    Raises:
        ValueError: a line is not JSON.
    """
    return _json_lines(store, name, "metrics.jsonl")


def _json_lines(store: Store, name: str, file: str) -> list[dict[str, Any]] | None:
    if artifacts.read_manifest(store, name) is None:
        return None
    fs, path = artifacts.filesystem_of(f"{store.uri(name)}/{file}")
    if fs.get_file_info(path).type == pafs.FileType.NotFound:
        return None
    with fs.open_input_stream(path) as stream:
        lines = stream.read().decode().splitlines()
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(f"{store.uri(name)}/{file}: not JSON lines: {error}; train again") from error


def held_out_evaluation(store: Store) -> dict[str, Any] | None:
    """Read the classifier's evaluation on held-out items; None if there is no classifier."""
    if artifacts.read_manifest(store, "classifier") is None:
        return None
    fs, path = artifacts.filesystem_of(f"{store.uri('classifier')}/{EVALUATION}")
    if fs.get_file_info(path).type == pafs.FileType.NotFound:
        return None
    with fs.open_input_stream(path) as stream:
        return dict(json.loads(stream.read()))


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
