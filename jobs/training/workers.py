"""Run train loops with Ray Train: workers on CPU (gloo) or GPU (nccl), resumed from the latest checkpoint."""

import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from ray.data import ExecutionOptions
from ray.train import CheckpointConfig, DataConfig, FailureConfig, Result, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Queue

from digr.artifacts import filesystem_of
from digr.config import Config

TrainLoop = Callable[[dict[str, Any]], None]


class _Tell(UserCallback):
    """Sends the first worker's reports from Ray's controller process to the driver."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Put the first worker's metrics into the queue."""
        self.queue.put(metrics[0])


def fit(
    config: Config,
    train_loop: TrainLoop,
    loop_config: Mapping[str, Any],
    work_uri: str,
    *,
    name: str = "train",
    datasets: Mapping[str, Any] | None = None,
    num_workers: int | None = None,
    score: str | None = None,
    env: Mapping[str, str] | None = None,
    report: Callable[[dict[str, Any]], None] = lambda metrics: None,
) -> Result:
    """Run a train loop on `config.train`'s workers and return Ray's result.

    A rerun with the same `work_uri` and `name` resumes from the latest checkpoint: the loop must call
    `ray.train.get_checkpoint()` first, and return without reporting if the training is complete. The result's `checkpoint` is
    then that of the earlier run. Ray must be running.

    Args:
        train_loop: runs in every worker; gets `loop_config`; calls `ray.train.report(metrics, checkpoint=...)`.
        work_uri: scratch folder of the stage, local or s3://; checkpoints are in `<work_uri>/<name>`.
        datasets: Ray Datasets, each sharded over the workers.
        num_workers: workers, if not `config.train.num_workers`.
        score: metric of `result.get_best_checkpoint`; the best and the latest checkpoint are kept.
        env: environment variables set in a worker before the loop runs.
        report: called on the driver with the first worker's metrics, once per `ray.train.report`.
    """
    train, queue = config.train, Queue(actor_options={"num_cpus": 0})
    threads, variables = train.threads_per_worker, dict(env or {})
    callbacks: list[Any] = [_Tell(queue)]

    folder = Path.cwd()

    def loop(values: dict[str, Any]) -> None:
        if folder.is_dir():  # Ray gives workers other working directories, where relative paths of the config would not be found
            os.chdir(folder)
        os.environ.update(variables)
        if not torch.cuda.is_available():
            torch.set_num_threads(threads)
        train_loop(values)

    # Ray's controller polls the workers at this interval, and a report waits for it; the default of 2 s may exceed an epoch
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    filesystem, path = filesystem_of(work_uri)
    filesystem.create_dir(path, recursive=True)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    trainer = TorchTrainer(
        loop,
        train_loop_config=dict(loop_config),
        torch_config=TorchConfig(backend="nccl" if train.use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=num_workers or train.num_workers, use_gpu=train.use_gpu),
        run_config=RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=train.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_score_attribute=score),
            callbacks=callbacks,
        ),
        datasets=dict(datasets) if datasets else None,
        # shards have the same rows in every run, so that a resumed training continues with the same data
        dataset_config=DataConfig(execution_options=ExecutionOptions(preserve_order=True)),
    )
    listener = threading.Thread(target=_listen, args=(queue, report), daemon=True)
    listener.start()
    try:
        return trainer.fit()
    finally:
        queue.put(None)
        listener.join(timeout=10)
        queue.shutdown()


def _listen(queue: Queue, report: Callable[[dict[str, Any]], None]) -> None:
    while (metrics := queue.get()) is not None:
        report(metrics)
