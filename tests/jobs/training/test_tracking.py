"""Trackers get every number of every record; one that is not installed is named."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from digr.config import build_config
from jobs.training.tracking import tracked

FAKES = {
    "mlflow": """
from contextlib import contextmanager
calls = []
def set_tracking_uri(uri): calls.append(["uri", uri])
def set_experiment(name): calls.append(["experiment", name])
def log_dict(values, file): calls.append(["config", sorted(values), file])
def log_metrics(numbers, step): calls.append(["metrics", numbers, step])
@contextmanager
def start_run(run_name):
    calls.append(["start", run_name])
    yield
    calls.append(["end"])
""",
    "wandb": """
calls = []
class init:
    def __init__(self, project, name, config): calls.append(["start", project, name, sorted(config)])
    def __enter__(self): return self
    def __exit__(self, *error): calls.append(["end"])
    def log(self, numbers, step): calls.append(["metrics", numbers, step])
""",
}
SECTIONS = ["grpo", "policy", "sft", "tasks", "train"]


def _calls(tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[object]]:
    """Log one record with a stand-in for the tracker's package."""
    (tmp_path / f"{tracker}.py").write_text(FAKES[tracker])
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop(tracker, None)
    run, told = {"dir": "x", "tracker": tracker, "tracker_uri": "http://tracker", "variant": "plain"}, []
    with tracked(build_config({"run": run}, where="test"), "policy_sft", told.append) as report:
        report({"step": 7, "loss": 1.5, "ndcg@10": 0.25})
    assert told == [{"step": 7, "loss": 1.5, "ndcg@10": 0.25}]
    return json.loads(json.dumps(sys.modules.pop(tracker).calls))


def test_mlflow_gets_the_config_and_every_number_at_its_step(tmp_path, monkeypatch):
    assert _calls("mlflow", tmp_path, monkeypatch) == [
        ["uri", "http://tracker"],
        ["experiment", "digr"],
        ["start", "policy_sft plain"],
        ["config", SECTIONS, "config.json"],
        ["metrics", {"loss": 1.5, "ndcg_at_10": 0.25}, 7],
        ["end"],
    ]


def test_weights_and_biases_gets_the_config_and_every_number_at_its_step(tmp_path, monkeypatch):
    assert _calls("wandb", tmp_path, monkeypatch) == [
        ["start", "digr", "policy_sft plain", SECTIONS],
        ["metrics", {"loss": 1.5, "ndcg_at_10": 0.25}, 7],
        ["end"],
    ]


@pytest.mark.parametrize("tracker", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_named_with_what_to_do(tracker):
    if importlib.util.find_spec(tracker):
        pytest.skip(f"{tracker} is installed")
    config = build_config({"run": {"dir": "x", "tracker": tracker}}, where="test")
    with (
        pytest.raises(ValueError, match=rf'run.tracker = "{tracker}": .* pip install {tracker}, or set run.tracker = "none"'),
        tracked(config, "policy_sft", print),
    ):
        raise AssertionError("not reached")
