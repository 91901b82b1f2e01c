"""Common parts of `train_sft` and `train_grpo`: the engine, checkpoints, and the resulting policy artifact."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray.train
import torch

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.config.policy import GrpoConfig, SftConfig
from digr.policy.model import SidPolicy, adapt, checkpoint_activations
from digr.policy.training.engine import Engine, PlainEngine, make_optimizer
from digr.policy.training.validation import Progress
from jobs.training.deepspeed_engine import DeepSpeedEngine
from jobs.training.tracking import PrintRecord, tracked
from jobs.training.workers import TrainLoop, fit

_SPEED = "engine num_workers zero_stage offload use_gpu threads_per_worker max_failures gradient_checkpointing"
MAY_CHANGE = tuple(f"train.{key}" for key in _SPEED.split())
"""Fields that may change when a killed training is resumed from its checkpoint."""


def make_engine(
    config: Config, policy: SidPolicy, section: SftConfig | GrpoConfig, *, weight_decay: float, reference: SidPolicy | None = None
) -> Engine:
    """Put a policy into the configured engine, with adapters if configured.

    Adapters are initialised from the seed, equally on all workers; after that, random numbers depend on seed and rank.

    Args:
        section: has the learning rate and the limit for gradients.
        reference: see `Engine.reference_model`.
    """
    torch.manual_seed(config.run.seed)
    adapt(policy, config.policy)
    torch.manual_seed(config.run.seed + ray.train.get_context().get_world_rank())
    if config.train.gradient_checkpointing:
        checkpoint_activations(policy)
    optimizer, clip, precision = make_optimizer(policy, section.lr, weight_decay), section.max_grad_norm, config.train.precision
    if config.train.engine == "plain":
        return PlainEngine(policy, optimizer, max_grad_norm=clip, precision=precision, reference=reference)
    return DeepSpeedEngine(config.train, policy, optimizer, max_grad_norm=clip, reference=reference)


def worker_env(config: Config) -> dict[str, str]:
    """Return the environment of a worker: on CPU, DeepSpeed must be told that there is no accelerator."""
    return {} if config.train.use_gpu else {"DS_ACCELERATOR": "cpu"}


def save(record: dict[str, Any], write: Callable[[Path], None]) -> None:
    """Report metrics and this worker's checkpoint files to Ray Train."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        ray.train.report(record, checkpoint=ray.train.Checkpoint.from_directory(folder))


@contextmanager
def folders() -> Iterator[tuple[Path | None, Path]]:
    """Yield the folder of the checkpoint to resume, or None, and a scratch folder for the best weights."""
    checkpoint = ray.train.get_checkpoint()
    with tempfile.TemporaryDirectory() as scratch:
        if checkpoint is None:
            yield None, Path(scratch) / "best"
            return
        with checkpoint.as_directory() as folder:
            yield Path(folder), Path(scratch) / "best"


def train(
    config: Config,
    store: Store,
    name: str,
    train_loop: TrainLoop,
    work: str,
    *,
    datasets: Mapping[str, Any],
    print_record: PrintRecord,
) -> Progress:
    """Run a train loop on Ray Train's workers, and make the policy artifact from its last checkpoint.

    Args:
        train_loop: gets `{"config": config, "store": store}`.
        print_record: prints the progress line of a record.
    """
    values, env = {"config": config, "store": store}, worker_env(config)
    with tracked(config, name, print_record) as report:
        result = fit(config, train_loop, values, work, datasets=datasets, env=env, report=report)
    return write_policy(store, name, result.checkpoint)


def write_policy(store: Store, name: str, checkpoint: ray.train.Checkpoint | None) -> Progress:
    """Make the policy artifact of a finished training: best weights, metrics.jsonl, rollouts.jsonl, TensorBoard events."""
    assert checkpoint is not None and checkpoint.filesystem is not None, "a training ends with a checkpoint"
    filesystem, path = checkpoint.filesystem, checkpoint.path
    with filesystem.open_input_stream(f"{path}/progress.json") as stream:
        progress = Progress(**json.loads(stream.read()))
    to_filesystem, to_path = artifacts.filesystem_of(store.uri(name))
    pafs.copy_files(f"{path}/best", to_path, source_filesystem=filesystem, destination_filesystem=to_filesystem)
    with tempfile.TemporaryDirectory() as folder:
        for file, rows in (("metrics.jsonl", progress.records), ("rollouts.jsonl", progress.samples)):
            (Path(folder) / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
        _write_events(Path(folder) / "tensorboard", progress.records)
        artifacts.put_files(store, name, Path(folder))
    return progress


def _write_events(folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for record in records:
            for key, value in record.items():
                if key not in ("step", "epoch"):
                    writer.add_scalar(key, value, int(record["step"]))
