"""Run every stage in order in one process; finished stages are skipped, so a killed run is simply started again."""

import importlib
import time
from typing import Any, NamedTuple

from digr.config import Config, apply_overrides
from jobs.runtime.command_line import main
from jobs.runtime.progress import BARS
from jobs.runtime.session import Options, log

MINING = ("prepare_data", "mine_interests", "train_classifier", "label_interests")
RANKING = ("build_neighbours", "train_ranker")
MODEL = (
    "embed_items",
    "build_neighbours",
    "train_ranker",
    "build_sids",
    "train_sft",
    "train_grpo",
    "train_towers",
    "recommend",
)


class Step(NamedTuple):
    """One job of the run, with the config it gets."""

    job: str
    config: Config

    @property
    def label(self) -> str:
        """Name of the job, and of the variant it works for."""
        return f"{self.job} ({self.config.run.variant})" if self.config.run.variant else self.job


def plan(config: Config) -> list[Step]:
    """Return the jobs of a run in order: the main run, each ablation from the embeddings on, and the evaluation of all.

    GRPO is left out if `grpo.enabled`, or an ablation's `grpo`, is false. Ranker and towers are left out if `ranking.enabled` or
    `towers.enabled` is false, and in all ablations.

    Raises:
        ValueError: an ablation's override is not a known key or out of its range.
    """
    steps = [Step(job, config) for job in MINING + MODEL]
    for ablation in config.ablations:
        own = {"run.variant": ablation.name, "grpo.enabled": ablation.grpo, "ranking.enabled": False, "towers.enabled": False}
        choices = {**ablation.overrides, **own}
        steps += [Step(job, apply_overrides(config, choices)) for job in MODEL]
    return [step for step in steps if _is_wanted(step)] + [Step("evaluate", config)]


def _is_wanted(step: Step) -> bool:
    needs = {"train_grpo": step.config.grpo.enabled, "train_towers": step.config.towers.enabled}
    return (needs | dict.fromkeys(RANKING, step.config.ranking.enabled)).get(step.job, True)


def run(config: Config, options: Options) -> dict[str, Any]:
    """Run the plan; the summary lists each job with its status and seconds, and has the report's path."""
    steps = plan(config)
    log("pipeline", f"{len(steps)} jobs into {config.run.dir}")
    start, done, summary = time.monotonic(), [], {}
    for number, step in enumerate(steps, 1):
        begun = time.monotonic()
        summary = importlib.import_module(f"jobs.{step.job}").run(step.config, options)
        seconds = round(time.monotonic() - begun, 1)
        status = summary.get("status", "done")
        BARS.show("pipeline", number, len(steps))
        log("pipeline", f"{number}/{len(steps)} {step.label}: {status} in {seconds:.1f} s")
        done.append({"job": step.job, "variant": step.config.run.variant, "status": status, "seconds": seconds})
    total = round(time.monotonic() - start, 1)
    log("pipeline", f"all {len(steps)} jobs in {total:.1f} s")
    if "report" in summary and not options.dry_run:
        print(f"report: {summary['report']}")
    status = "would build" if options.dry_run else "done"
    return {"status": status, "seconds": total, "run_dir": config.run.dir, "report": summary.get("report"), "jobs": done}


if __name__ == "__main__":
    main(run, force="stale")
