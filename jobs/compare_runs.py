"""Evaluate runs that differ only in their seed: means, intervals and paired gains, by split and with both splits combined.

It reads the lists of `jobs.recommend` in `run.dir` and in `seeds.runs`, and builds `seed_comparison` in `run.dir`. It is not
part of the pipeline.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.evaluation.report import metrics_text, strict_json
from digr.evaluation.seeds import SeedResults, common_systems, compare_runs, gains_text
from digr.tables import HELD_OUT
from jobs.runtime.command_line import main
from jobs.runtime.session import Options, log
from jobs.runtime.stage import Output, run_stage, store_at, store_of

OUTPUT = "seed_comparison"


def run(config: Config, options: Options) -> dict[str, Any]:
    """Build `seed_comparison`: the tables as JSON, and printed."""
    runs = [store_of(config), *map(store_at, config.seeds.runs)]
    if len(runs) < 2 and not options.dry_run:
        raise ValueError("seeds.runs is empty: give the runs of other seeds, for example seeds.runs='[\"runs/seed_1\"]'")

    def build(store: Store, work: str) -> Mapping[str, Output]:
        systems, chosen = common_systems(runs), config.evaluation
        log(OUTPUT, f"{len(runs)} runs; systems that all of them have: {', '.join(systems)}")
        found = compare_runs(runs, ks=chosen.ks, resamples=chosen.bootstrap, rng=np.random.default_rng(config.run.seed))
        described = [_describe(each, systems[-1]) for each in runs]
        fs, path = artifacts.filesystem_of(f"{store.uri(OUTPUT)}/{OUTPUT}.json")
        with fs.open_output_stream(path) as stream:
            stream.write(strict_json({"runs": described, **found._asdict()}).encode())
        _print_tables(found, chosen.ks)
        return {OUTPUT: Output(len(found.metrics), facts={"runs": described, "systems": found.systems})}

    names = [] if options.dry_run else [f"recommendations/{name}_{split}" for name in common_systems(runs) for split in HELD_OUT]
    lists = {f"{name} of {other.root}": f"{other.uri(name)}/{artifacts.MANIFEST}" for name in names for other in runs[1:]}
    labels = ["interest_labels", "canonical_interests"] if config.ranking.enabled else []
    inputs = ["histories", *labels, *names]
    sections = ["evaluation", "seeds"]
    return run_stage(config, options, outputs=[OUTPUT], sections=sections, inputs=inputs, files=lists, build=build)


def _describe(run: Store, system: str) -> dict[str, Any]:
    """Return a run's folder, the seed of a system's lists, and the seconds that each job took."""
    manifests = {name: artifacts.read_manifest(run, name) for name in artifacts.JOB_OF}
    seconds = {artifacts.JOB_OF[name]: manifest.seconds for name, manifest in manifests.items() if manifest}
    return {"run": run.root, "seed": artifacts.require(run, f"recommendations/{system}_test").seed, "seconds": seconds}


def _print_tables(found: SeedResults, ks: Sequence[int]) -> None:
    for split in dict.fromkeys(row["split"] for row in found.metrics):
        print(metrics_text(found.metrics, split), end="\n\n")
    measures = [("ndcg", min(ks, key=lambda k: abs(k - 10))), ("hr", max(ks))]
    print(gains_text(found.comparisons, found.systems[-1], measures), flush=True)


if __name__ == "__main__":
    main(run)
