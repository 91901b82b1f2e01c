"""Fit a quantiser on the workers of Ray Train; each reads its own vectors."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch

from digr.artifacts import Store
from digr.config import Config, apply_overrides
from digr.sids.building import sample_of_worker
from digr.sids.fitting import Quantiser, fit_quantiser, load_quantiser, save_quantiser
from digr.sids.fusion import Fusion
from digr.sids.peers import Peers
from jobs.runtime.session import start_ray
from jobs.training.workers import fit


def fit_with_workers(
    config: Config, store: Store, work: str, fusion: Fusion | None, report: Callable[[str], None], *, num_workers: int
) -> Quantiser:
    """Fit the configured quantiser on Ray workers, with a GPU each if a config section uses GPUs.

    The quantiser is returned on the CPU, because the driver may have no GPU. A killed fit starts again: it takes minutes, and
    only its result is stored.

    Args:
        num_workers: number of workers; 1 for k-means.
    """
    start_ray(config)
    values = {"config": config, "store": store, "fusion": fusion}
    placed = apply_overrides(config, {"train.use_gpu": config.train.use_gpu or config.cluster.use_gpu})
    result = fit(placed, _fit, values, work, name="quantiser", num_workers=num_workers, report=lambda told: report(told["text"]))
    assert result.checkpoint is not None, "the loop ends with one"
    with result.checkpoint.as_directory() as folder:
        return load_quantiser(Path(folder))


def _fit(values: dict[str, Any]) -> None:
    if ray.train.get_checkpoint():
        return
    config, context = values["config"], ray.train.get_context()
    peers = Peers(context.get_world_rank(), context.get_world_size())
    vectors = sample_of_worker(values["store"], config.sids, config.run.seed, values["fusion"], peers)

    def report_epoch(text: str) -> None:
        ray.train.report({"text": text})

    device = str(ray.train.torch.get_device())
    quantiser = fit_quantiser(vectors, config.sids, config.run.seed, report_epoch, device=device, peers=peers)
    with tempfile.TemporaryDirectory() as folder:
        save_quantiser(quantiser, Path(folder))
        checkpoint = ray.train.Checkpoint.from_directory(folder) if peers.rank == 0 else None
        ray.train.report({"text": f"fitted by {peers.size} workers"}, checkpoint=checkpoint)
