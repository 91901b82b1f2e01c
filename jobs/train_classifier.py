"""Train the interest classifier with Ray Train: artifact `classifier`."""

import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.train.torch
import torch

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.config.interests import ClassifierConfig
from digr.models.encoders import load_encoder
from digr.rewards.calibration import EVALUATION, calibrate, held_out_evaluation
from digr.rewards.classifier import save_classifier
from digr.rewards.pairs import PairTables, pair_tables
from digr.rewards.training import fit_classifier
from jobs.runtime.command_line import main
from jobs.runtime.session import Options, log, start_ray
from jobs.runtime.stage import Output, run_stage
from jobs.training.workers import fit

STAGE = "classifier"
PAIR_VECTOR_TOKENS = 32
"""Tokens of a held-out item's text that are encoded to find its neighbours; titles come first."""


def train_loop(values: dict[str, Any]) -> None:
    """Train on this worker's share of the pairs; the first worker calibrates on held-out items and saves."""
    if ray.train.get_checkpoint():
        return
    config, context = ClassifierConfig.model_validate(values["classifier"]), ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(values["seed"])
    device = str(ray.train.torch.get_device())
    classifier = fit_classifier(
        load_encoder(config.base, device),
        _read(values["work"], "train"),
        config,
        rank=rank,
        num_workers=num_workers,
        device=device,
        wrap=ray.train.torch.prepare_model,
        rng=np.random.default_rng([values["seed"], rank]),
        report=lambda metrics: ray.train.report(dict(metrics)),
    )
    held_out = _read(values["work"], "held_out")
    part = np.array_split(np.arange(len(held_out)), num_workers)[rank]
    logits = classifier.logits(*(held_out[name].take(part).to_pylist() for name in ("phrase", "text", "item_id")))
    whole = np.concatenate(_gather(logits, num_workers))
    label = held_out["label"].to_numpy()
    found = calibrate(whole, label, held_out["kind"].to_pylist(), held_out["half"].to_numpy())
    with tempfile.TemporaryDirectory() as folder:
        if rank == 0:
            calibrated = classifier._replace(slope=found.slope, intercept=found.intercept)
            save_classifier(Path(folder), calibrated, config.base)
            (Path(folder) / EVALUATION).write_text(json.dumps(held_out_evaluation(found, label)))
        ray.train.report(found.metrics, checkpoint=ray.train.Checkpoint.from_directory(folder) if rank == 0 else None)


def _gather(value: Any, num_workers: int) -> list[Any]:
    if num_workers == 1:
        return [value]
    gathered: list[Any] = [None] * num_workers
    torch.distributed.all_gather_object(gathered, value)
    return gathered


def _read(work: str, side: str) -> pa.Table:
    filesystem, path = artifacts.filesystem_of(f"{work}/{side}.parquet")
    return pq.read_table(path, filesystem=filesystem)


def draw_pairs(config: Config, store: Store, device: str) -> PairTables:
    """Draw the pairs from a bounded sample of items, in a task, because the driver may have no GPU."""
    torch.set_num_threads(config.cluster.encode_threads)
    encode = load_encoder(config.classifier.base.model_copy(update={"max_tokens": PAIR_VECTOR_TOKENS}), device)
    return pair_tables(store, config.classifier, encode=encode, rng=np.random.default_rng(config.run.seed))


def _report(epochs: int, metrics: dict[str, Any]) -> None:
    if metrics.get("epoch", epochs) == epochs:
        log(STAGE, ", ".join(f"{name} {value:.3f}".removesuffix(".000") for name, value in metrics.items()))


def run(config: Config, options: Options) -> dict[str, Any]:
    """Build `classifier`; a task draws the pairs, and the workers read them."""

    def build(store: Store, work: str) -> Mapping[str, Output]:
        start_ray(config)
        draw: Any = ray.remote(num_gpus=int(config.cluster.use_gpu))(draw_pairs)
        sides = ray.get(draw.remote(config, store, "cuda" if config.cluster.use_gpu else "cpu"))
        filesystem, path = artifacts.filesystem_of(work)
        filesystem.create_dir(path, recursive=True)
        for side, table in sides._asdict().items():
            pq.write_table(table, f"{path}/{side}.parquet", filesystem=filesystem)
        log(STAGE, f"{len(sides.train)} mined pairs to train on, {len(sides.held_out)} of held-out items")
        values = {"classifier": config.classifier.model_dump(), "work": work, "seed": config.run.seed}
        result = fit(config, train_loop, values, work, report=partial(_report, config.classifier.epochs))
        assert result.checkpoint is not None, "the loop reports a checkpoint last"
        with result.checkpoint.as_directory() as folder:
            artifacts.put_files(store, STAGE, Path(folder))
            metrics = json.loads((Path(folder) / EVALUATION).read_text())["metrics"]
        return {STAGE: Output(len(sides.train), facts={"num_held_out_pairs": len(sides.held_out), **metrics})}

    inputs, judged = ["items", "interests"], config.classifier.judged_run
    files = {"interest_labels of classifier.judged_run": Store(judged).uri("interest_labels")} if judged else {}
    sources: dict[str, Any] = {"inputs": inputs, "files": files, "models": {"classifier.base": config.classifier.base}}
    return run_stage(config, options, outputs=[STAGE], sections=["classifier"], build=build, **sources)


if __name__ == "__main__":
    main(run)
