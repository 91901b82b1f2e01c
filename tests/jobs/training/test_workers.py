"""`jobs.training.workers.fit` runs gloo workers, tells the driver, restarts lost workers and resumes a finished run."""

import tempfile
from pathlib import Path
from typing import Any

import pytest

from digr.config import build_config
from jobs.training.workers import fit

pytestmark = pytest.mark.ray


def _count_to_three(values: dict[str, Any]) -> None:
    import os

    import ray.train
    import torch

    start, checkpoint = 0, ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            start = int((Path(folder) / "step").read_text())
    for step in range(start + 1, 4):
        total = torch.tensor([float(ray.train.get_context().get_world_rank() + 1)])
        torch.distributed.all_reduce(total)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "step").write_text(str(step))
            chief = ray.train.get_context().get_world_rank() == 0
            metrics = {"step": step, "sum": total.item(), "word": os.environ["DIGR_TEST_WORD"]}
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder) if chief else None)
        marker = Path(values["marker"])
        if step == 2 and chief and not marker.exists():
            marker.write_text("failed once")
            raise RuntimeError("a lost worker")


def test_a_lost_worker_is_restarted_from_its_checkpoint_and_a_finished_run_is_taken_up_by_another_number_of_workers(
    tmp_path, ray_local
):
    config = build_config({"run": {"dir": str(tmp_path)}}, where="test")
    reported: list[dict[str, Any]] = []
    options = {"env": {"DIGR_TEST_WORD": "hello"}, "report": reported.append}
    result = fit(config, _count_to_three, {"marker": str(tmp_path / "marker")}, f"{tmp_path}/work", **options)
    assert [(item["step"], item["sum"], item["word"]) for item in reported] == [(step, 3.0, "hello") for step in (1, 2, 3)]
    again = fit(config, _count_to_three, {"marker": str(tmp_path / "marker")}, f"{tmp_path}/work", num_workers=1, **options)
    assert len(reported) == 3
    assert again.checkpoint.path == result.checkpoint.path
    with again.checkpoint.as_directory() as folder:
        assert (Path(folder) / "step").read_text() == "3"
