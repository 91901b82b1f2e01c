"""A pipeline whose driver is killed in the middle of its stages ends in the same artifacts as one that never was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from digr import artifacts
from digr.artifacts import Store

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "train.engine=plain",  # starts faster; test_train_policy.py trains with DeepSpeed
    "train.num_workers=1",
    "train.threads_per_worker=2",
    "data.synthetic.num_items=60",
    "data.synthetic.num_users=200",
    "data.synthetic.num_interests=6",
    "classifier.max_pairs=64",
    "sids.level_sizes=[8, 8]",
    "sids.epochs=20",
    "policy.hidden_dim=32",
    "policy.num_layers=1",
    "policy.num_heads=2",
    "sft.epochs=2",
    "sft.eval_every_epochs=1",
    "grpo.steps=2",
    "grpo.eval_every_steps=1",
    "grpo.prompts_per_step=8",
    "grpo.group_size=4",
    "evaluation.bootstrap=100",
    "ablations=[]",
]
KILLED_IN = ("interests", "policy_sft", "recommendations/sft_test")


class Pipeline:
    """A driver process and the Ray processes below it."""

    def __init__(self, run_dir: Path) -> None:
        command = [sys.executable, "-m", "jobs.pipeline", "--config", "configs/quickstart.toml", f"run.dir={run_dir}", *TINY]
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []

    def read_until(self, text: str | None) -> bool:
        """Read the driver's output up to a line with `text`, or to its end."""
        for line in self.process.stdout:
            self.lines.append(line)
            if text is not None and text in line:
                return True
        self.process.wait(timeout=60)
        return False

    def kill(self) -> None:
        """Kill the driver only, and wait for what Ray started below it to follow by itself."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGKILL)
        self.process.stdout.close()
        self.process.wait(timeout=60)
        _, alive = psutil.wait_procs(children, timeout=60)
        assert alive == []


def _tables(run_dir: Path) -> dict[str, pa.Table]:
    store = Store(str(run_dir))
    names = ["interests", "interest_labels", "item_embeddings", "item_sids", "metrics"]
    names += [f"recommendations/{policy}_{split}" for policy in ("sft", "grpo") for split in ("valid", "test")]
    return {name: artifacts.read_table(store, name) for name in names}


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_killed_pipeline_resumes_and_ends_in_the_same_artifacts(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    reference = Pipeline(whole)
    reference.read_until(None)
    assert reference.process.returncode == 0, "".join(reference.lines)
    for stage in KILLED_IN:
        driver = Pipeline(killed)
        assert driver.read_until(f"{stage}: started"), "".join(driver.lines)
        time.sleep(0.5)
        driver.kill()
        assert artifacts.read_manifest(Store(str(killed)), stage) is None
    last = Pipeline(killed)
    last.read_until(None)
    assert last.process.returncode == 0, "".join(last.lines)
    found, expected = _tables(killed), _tables(whole)
    for name, table in expected.items():
        assert found[name].equals(table), name
    assert not list(killed.glob("**/*.work-*"))
