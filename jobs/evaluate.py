"""Measure every system of the run and the baselines on the same examples, and write the metrics table and the report."""

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.data.ids import build_id_index
from digr.data.transitions import read_sequences
from digr.evaluation.baselines import BASELINES, collect_examples, count_training, recommend_baseline
from digr.evaluation.metrics import evaluate_split
from digr.evaluation.report import RunDescription, build_report, metrics_json, metrics_text
from digr.tables import table_spec
from jobs.runtime.session import Options, main, say
from jobs.runtime.stage import Made, run_stage, store_of

SPLITS = ("valid", "test")


def run(config: Config, options: Options) -> dict:
    """Evaluate the run and all its ablations at once."""
    if config.run.variant:
        raise ValueError(
            f"run.variant = {config.run.variant!r}: the run and its ablations are evaluated together; leave it empty"
        )
    deepest = max(config.evaluation.ks)
    if deepest > config.decoding.k:
        raise ValueError(f"evaluation.ks: cutoff {deepest} is beyond the {config.decoding.k} items listed; raise decoding.k")
    recommendations = [name for _, variant, stage in systems_of(config) for name in _artifact_names(variant, stage)]
    summary = run_stage(
        config,
        options,
        outputs=["metrics"],
        sections=["evaluation", "ablations"],
        inputs=["items", "histories", *recommendations],
        build=partial(_build, config),
    )
    return summary | {"report": f"{store_of(config).uri('metrics')}/report.html"}


def systems_of(config: Config) -> list[tuple[str, str, str]]:
    """Name, variant and training stage of every trained system, in the order of the metrics table."""
    found = []
    for ablation in config.ablations:
        stages = ("sft", "grpo") if ablation.grpo else ("sft",)
        found += [(f"sid_{stage}[{ablation.name}]", ablation.name, stage) for stage in stages]
    return [*found, ("sid_sft", "", "sft"), ("sid_grpo", "", "grpo")]


def _artifact_names(variant: str, stage: str) -> list[str]:
    folder = f"variants/{variant}/" if variant else ""
    return [f"{folder}recommendations/{stage}_{split}" for split in SPLITS]


def _build(config: Config, store: Store, work: str) -> Mapping[str, Made]:
    rng = np.random.default_rng(config.run.seed)
    items = build_id_index(artifacts.read_table(store, "items", ["item_id"])["item_id"])
    counts = count_training(read_sequences(store, partial(items.find_all, where="histories")), items, rng)
    rows, comparisons = [], []
    for split in SPLITS:
        examples = collect_examples(
            _histories(store, split, ["example_id", "user_id", "history", "target"]), counts, f"histories, {split}"
        )
        systems = _baselines(store, split, counts, max(config.evaluation.ks)) | _trained(config, split)
        say("metrics", f"{split}: {len(examples.targets)} examples, {len(systems)} systems")
        found = evaluate_split(
            systems, examples, items, split, ks=config.evaluation.ks, resamples=config.evaluation.bootstrap, rng=rng
        )
        rows += found[0]
        comparisons += found[1]
    artifacts.write_table(store, "metrics", pa.Table.from_pylist(rows, table_spec("metrics").schema))
    _write(store, "metrics.json", metrics_json(rows, comparisons))
    description = RunDescription(
        config=config.model_dump(mode="json"),
        variants=[ablation.name for ablation in config.ablations],
        command=shlex.join(["python", *sys.orig_argv[1:]]),
        generated=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )
    _write(store, "report.html", build_report(store, description, rows, comparisons))
    print(metrics_text(rows, "test"), flush=True)
    return {"metrics": Made(rows=len(rows), facts={"systems": [*systems], "examples": len(examples.targets)})}


def _histories(store: Store, split: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    histories = artifacts.dataset_of(store, "histories")
    return iter(histories.to_batches(columns=columns, filter=pads.field("split") == split))


def _baselines(store: Store, split: str, counts, k: int) -> dict[str, Callable]:
    return {
        name: lambda depth=depth: recommend_baseline(_histories(store, split, ["example_id", "history"]), counts, depth, k)
        for name, depth in BASELINES.items()
    }


def _trained(config: Config, split: str) -> dict[str, Callable]:
    columns = ["example_id", "item_ids"]
    return {
        name: partial(artifacts.iter_table, Store(config.run.dir, variant), f"recommendations/{stage}_{split}", columns)
        for name, variant, stage in systems_of(config)
    }


def _write(store: Store, name: str, text: str) -> None:
    fs, path = artifacts.filesystem_of(store.uri("metrics"))
    with fs.open_output_stream(f"{path}/{name}") as stream:
        stream.write(text.encode())


if __name__ == "__main__":
    main(run)
