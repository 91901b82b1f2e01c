"""The overhead benchmark compares every stage that uses Ray, and only those."""

from pathlib import Path

from benchmarks.pipeline_overhead import FIXED, QUICK, STAGES
from digr.config import load_config
from jobs.pipeline import plan

ROOT = Path(__file__).resolve().parents[2]


def test_every_job_that_starts_ray_has_its_work_without_ray():
    config = load_config(ROOT / "configs" / "quickstart.toml", [*FIXED, *QUICK])
    uses_ray = [step.job for step in plan(config) if "start_ray(" in (ROOT / "jobs" / f"{step.job}.py").read_text()]
    assert list(STAGES) == uses_ray


def test_both_sides_do_the_same_epochs():
    config = load_config(ROOT / "configs" / "quickstart.toml", [*FIXED, *QUICK])
    assert config.sft.patience > config.sft.epochs
    assert config.ablations == ()
