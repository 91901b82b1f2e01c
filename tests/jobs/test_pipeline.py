"""The pipeline runs every job in order, skips what is done, and its planted interests are found again."""

import pytest

from digr.config import build_config
from jobs.pipeline import MINING, MODEL, plan


def _config(**sections):
    return build_config({"run": {"dir": "runs/x"}, **sections}, "test")


def test_the_plan_without_ablations_is_each_job_once_in_order():
    assert [step.job for step in plan(_config())] == [
        "prepare_data",
        "mine_interests",
        "train_classifier",
        "label_interests",
        "embed_items",
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
    assert names[9:13] == [f"{job} (plain)" for job in MODEL if job != "train_grpo"]
    assert names[13:18] == [f"{job} (rl)" for job in MODEL]
    assert names[-1] == "evaluate"
    assert len(steps) == len(MINING) + len(MODEL) + 4 + 5 + 1
    assert {step.config.embeddings.interests for step in steps[:9]} == {"trusted"}
    assert {step.config.embeddings.interests for step in steps[9:13]} == {"none"}
    assert {step.config.run.variant for step in steps[9:13]} == {"plain"}


def test_a_wrong_override_of_an_ablation_stops_the_run_before_it_starts():
    with pytest.raises(ValueError, match=r"embeddings\.interest: unknown key; the nearest known key is embeddings\.interests"):
        plan(_config(ablations=[{"name": "plain", "overrides": {"embeddings.interest": "none"}}]))
