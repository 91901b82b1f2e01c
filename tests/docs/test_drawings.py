"""The committed drawings show what the jobs read and write, and equal what the script draws."""

import importlib
import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest

from digr.artifacts import JOB_OF
from digr.config import Config, build_config
from docs.drawings import APART, EDGES, GRID, IMAGES, STAGES, drawings
from jobs.pipeline import plan
from jobs.runtime.session import Options

JOBS = {job.name: job for stage in STAGES.values() for job in stage.jobs}
LEAST = {
    "run": {"dir": "runs/none"},
    "labels": {"labelers": ["judge"], "judge": {"kind": "openai", "base_url": "http://none/v1", "model": "m"}},
    "grpo": {"enabled": False},
    "ranking": {"enabled": False},
    "seeds": {"runs": ["runs/another"]},
}
MOST = {
    "run": {"dir": "runs/none"},
    "interests": {"owners": ["item", "user"], "miners": [{"kind": "vllm", "name": "local", "model": "m"}]},
    "labels": {"labelers": ["classifier", "judge", "behavioural"], "judge": {"kind": "vllm", "model": "m"}},
    "embeddings": {"image_encoder": "m"},
    "policy": {"backbone": "hf", "base": "m"},
    "grpo": {"reward": {"canonical": 0.1}},
    "towers": {"enabled": True},
    "seeds": {"runs": ["runs/another"]},
}


@pytest.fixture
def reads(monkeypatch):
    """Give the function that runs a job without its stages and says what it asks of them."""

    def ask(name: str, tree: dict) -> SimpleNamespace:
        asked = SimpleNamespace(inputs=set(), outputs=set(), models=set())

        def record(config: Config, options: Options, *, outputs, inputs=(), models=(), **rest: object) -> dict:
            asked.inputs |= {each.split("/")[0] for each in inputs}
            asked.outputs |= {each.split("/")[0] for each in outputs}
            asked.models |= {each.split(" ")[0] for each in models}
            return {"outputs": {}, "status": "asked"}

        module = importlib.import_module(f"jobs.{name}")
        monkeypatch.setattr(module, "run_stage", record)
        if name == "compare_runs":  # which asks what lists the runs have
            monkeypatch.setattr(module, "common_systems", lambda runs: ["sft"])
        module.run(build_config(tree, "tests"), Options(dry_run=name != "compare_runs"))
        asked.inputs -= asked.outputs
        return asked

    return ask


def test_what_a_job_makes_is_what_the_artifacts_say_of_it():
    for name, job in JOBS.items():
        assert {part.name for part in job.makes} == {artifact for artifact, maker in JOB_OF.items() if maker == name}, name
    assert set(JOBS) == set(JOB_OF.values())


@pytest.mark.parametrize("name", JOBS)
def test_what_a_job_is_drawn_with_is_what_it_asks_for(name, reads):
    job, most = JOBS[name], reads(name, MOST)
    assert {part.name for part in job.reads} == most.inputs
    assert {part.name for part in job.models} == most.models
    assert {part.name for part in job.makes} == most.outputs


@pytest.mark.parametrize("name", [name for name in JOBS if name not in ("train_grpo", "train_towers")])
def test_what_is_drawn_without_a_condition_is_asked_for_by_the_smallest_run(name, reads):
    job, least = JOBS[name], reads(name, LEAST)
    assert {part.name for part in job.reads if not part.when} == least.inputs
    assert {part.name for part in job.models if not part.when} == least.models
    made = {part.name for part in job.makes if not part.when}
    assert made == least.outputs - {"interest_verdicts"}


def test_what_grpo_reads_for_a_reward_alone_is_drawn_with_that_condition(reads):
    usual = reads("train_grpo", {"run": {"dir": "runs/none"}})
    assert {part.name for part in JOBS["train_grpo"].reads if not part.when} == usual.inputs


def test_the_arrows_of_the_pipeline_are_what_stages_wait_for(reads):
    tree = {"run": {"dir": "runs/none"}, "towers": {"enabled": True}}
    jobs = {step.job for step in plan(build_config(tree, "tests"))}
    assert jobs == JOBS.keys() - set(APART)
    stage_of = {job.name: name for name, stage in STAGES.items() for job in stage.jobs}
    waits = {
        (stage_of[JOB_OF[read]], stage_of[name])
        for name in jobs
        for read in reads(name, tree).inputs
        if stage_of[JOB_OF[read]] != stage_of[name]
    }
    reach = set(waits)
    for between, left, right in itertools.product(GRID, repeat=3):
        if (left, between) in reach and (between, right) in reach:
            reach.add((left, right))
    direct = {edge for edge in waits if not any((edge[0], other) in reach and (other, edge[1]) in reach for other in GRID)}
    assert direct == set(EDGES)


def test_the_drawings_in_the_repository_are_what_the_script_draws():
    drawn = dict(drawings())
    assert {path.name for path in IMAGES.glob("stage_*.svg")} | {"pipeline.svg"} == set(drawn)
    for name, text in drawn.items():
        assert (IMAGES / name).read_text() == text, f"docs/images/{name} is not what docs/drawings.py draws; run it again"


def test_each_page_of_a_stage_shows_its_drawing():
    pages = Path(__file__).resolve().parents[2] / "docs" / "concepts"
    shown = {name.removesuffix(".svg").removeprefix("stage_") for name, _ in drawings() if name != "pipeline.svg"}
    assert {page.stem for page in pages.glob("*.md")} == shown
    for name in shown:
        assert f"](../images/stage_{name}.svg)" in (pages / f"{name}.md").read_text()
