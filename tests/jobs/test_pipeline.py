"""The pipeline runs every job in order, skips what is done, and its planted interests are found again."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from digr import artifacts
from digr.artifacts import Store
from digr.config import build_config
from digr.tables import TABLES
from jobs.pipeline import MINING, MODEL, RANKING, plan

ROOT = Path(__file__).resolve().parents[2]


def _config(**sections):
    return build_config({"run": {"dir": "runs/x"}, **sections}, "test")


def test_the_plan_without_ablations_is_each_job_once_in_order():
    assert [step.job for step in plan(_config())] == [
        "prepare_data",
        "mine_interests",
        "train_classifier",
        "label_interests",
        "embed_items",
        "build_neighbours",
        "train_ranker",
        "build_sids",
        "train_sft",
        "train_grpo",
        "recommend",
        "evaluate",
    ]


def test_an_ablation_runs_from_the_embeddings_on_with_its_own_choices_before_the_evaluation():
    ablations = [{"name": "plain", "overrides": {"embeddings.interests": "none"}}, {"name": "rl", "overrides": {}, "grpo": True}]
    steps = plan(_config(ablations=ablations))
    names = [step.label for step in steps]
    policies = [job for job in MODEL if job not in RANKING]
    assert names[11:15] == [f"{job} (plain)" for job in policies if job != "train_grpo"]
    assert names[15:20] == [f"{job} (rl)" for job in policies]
    assert names[-1] == "evaluate"
    assert len(steps) == len(MINING) + len(MODEL) + 4 + 5 + 1
    assert {step.config.embeddings.interests for step in steps[:11]} == {"trusted"}
    assert {step.config.embeddings.interests for step in steps[11:15]} == {"none"}
    assert {step.config.run.variant for step in steps[11:15]} == {"plain"}


def test_a_run_without_ranking_has_no_ranker():
    assert not set(RANKING) & {step.job for step in plan(_config(ranking={"enabled": False}))}


def test_grpo_may_be_left_out_of_the_run_or_of_an_ablation():
    ablations = [{"name": "rl", "overrides": {}, "grpo": True}, {"name": "plain", "overrides": {"sids.epochs": 1}}]
    trained = [step.label for step in plan(_config(ablations=ablations, grpo={"enabled": False})) if step.job == "train_grpo"]
    assert trained == ["train_grpo (rl)"]


def test_a_wrong_override_of_an_ablation_stops_the_run_before_it_starts():
    with pytest.raises(ValueError, match=r"embeddings\.interest: unknown key; the nearest known key is embeddings\.interests"):
        plan(_config(ablations=[{"name": "plain", "overrides": {"embeddings.interest": "none"}}]))


SHOP = [
    "train.engine=plain",  # starts faster; test_train_policy.py trains with DeepSpeed
    "train.num_workers=1",
    "train.threads_per_worker=2",
    "data.synthetic.num_items=240",
    "data.synthetic.num_users=800",
    "data.synthetic.num_interests=12",
    "classifier.max_pairs=1000",
    "sids.level_sizes=[16, 16, 16]",
    "sids.epochs=100",
    "policy.hidden_dim=64",
    "policy.num_layers=2",
    "sft.epochs=10",
    "grpo.steps=20",
    "grpo.eval_every_steps=10",
    "grpo.prompts_per_step=32",
    "grpo.group_size=8",
]
MARGIN = 0.05
"""NDCG@10 on test by which semantic IDs with interests beat those without."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[list[str], dict]:
    """Run the pipeline on a small shop as a user would: killed in the fine-tuning, started again, and once more.

    Gives the output of the second start, and the summary of the third.
    """
    command = [sys.executable, "-m", "jobs.pipeline", "--config", "configs/quickstart.toml", *SHOP]
    command.append(f"run.dir={tmp_path_factory.mktemp('shop')}")
    killed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    assert any("policy_sft: epoch 4," in line for line in killed.stdout)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 0, second.stdout + second.stderr
    third = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert third.returncode == 0, third.stdout + third.stderr
    return second.stdout.splitlines(), json.loads(third.stdout.splitlines()[-1])


def _ndcg(run_dir: str, split: str) -> dict[str, float]:
    metrics = artifacts.read_table(Store(run_dir), "metrics", split=[split], name=["ndcg"]).to_pylist()
    return {row["system"]: row["value"] for row in metrics if row["k"] == 10 and row["slice"] == "all"}


@pytest.mark.ray
@pytest.mark.timeout(3600)  # the fixture runs the pipeline three times, which beside busy processes takes many minutes
def test_a_run_tells_each_job_and_ends_with_the_table_the_report_and_a_summary(finished):
    lines, _ = finished
    steps = [line for line in lines if "] pipeline: " in line and "/16 " in line]
    assert len(steps) == 16
    assert any("sid_grpo" in line for line in lines)
    summary = json.loads(lines[-1])
    assert summary["status"] == "done"
    assert Path(summary["report"]).is_file()


@pytest.mark.ray
def test_a_killed_run_goes_on_where_it_was(finished):
    lines, _ = finished
    assert [job["status"] for job in json.loads(lines[-1])["jobs"]] == ["skipped"] * 8 + ["built"] * 8
    first_epoch = next(line for line in lines if "policy_sft: epoch" in line)
    assert "epoch 3," in first_epoch or "epoch 5," in first_epoch  # checkpoints are written after every second epoch


@pytest.mark.ray
def test_other_tools_open_the_folder_of_every_table_as_it_is(finished):
    """A reader of Parquet folders took `manifest.json`, the shop's images and the report for parts of the tables."""
    run_dir = json.loads(finished[0][-1])["run_dir"]
    store = Store(run_dir)
    manifests = {name: artifacts.read_manifest(store, name) for name in [*TABLES, "recommendations/sft_test"]}
    rows = {name: manifest.rows for name, manifest in manifests.items() if manifest}
    assert {"items", "interactions", "histories", "interests", "interest_labels", "item_sids", "metrics"} <= set(rows)
    assert {name: len(pd.read_parquet(Path(run_dir, name))) for name in rows} == rows


@pytest.mark.ray
def test_another_run_skips_every_job(finished):
    _, summary = finished
    assert {job["status"] for job in summary["jobs"]} == {"skipped"}


@pytest.mark.ray
def test_semantic_ids_with_interests_beat_those_without_them(finished):
    _, summary = finished
    ndcg = _ndcg(summary["run_dir"], "test")
    assert ndcg["sid_sft"] >= ndcg["sid_sft[without_interests]"] + MARGIN, ndcg


@pytest.mark.ray
def test_grpo_does_not_lower_ndcg_on_valid(finished):
    _, summary = finished
    ndcg = _ndcg(summary["run_dir"], "valid")
    assert ndcg["sid_grpo"] >= ndcg["sid_sft"], ndcg
