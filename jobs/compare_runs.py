"""Measure several runs of one configuration together, for example three seeds: means, intervals and paired gains as one table.

    python -m jobs.compare_runs runs/seed_0 runs/seed_1 runs/seed_2 --out seeds.json

It reads what `jobs.recommend` wrote in each run and builds no artifact.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from digr import artifacts
from digr.artifacts import Store
from digr.evaluation.report import metrics_text, strict_json
from digr.evaluation.seeds import SPLITS, SeedResults, compare_runs, gains_text


def describe_runs(runs: Sequence[Store]) -> list[dict[str, Any]]:
    """Return folder and seed of each run, and the seconds that its stages took."""
    found = []
    for run in runs:
        manifests = {name: artifacts.read_manifest(run, name) for name in artifacts.JOB_OF}
        seconds = {artifacts.JOB_OF[name]: manifest.seconds for name, manifest in manifests.items() if manifest}
        found.append({"run": run.root, "seed": artifacts.require(run, "histories").seed, "seconds": seconds})
    return found


def print_tables(found: SeedResults, ks: Sequence[int]) -> None:
    """Print the metrics of each split, and what the last system gains."""
    for split in dict.fromkeys(row["split"] for row in found.metrics):
        print(metrics_text(found.metrics, split), end="\n\n")
    measures = [("ndcg", min(ks, key=lambda k: abs(k - 10))), ("hr", max(ks))]
    print(gains_text(found.comparisons, found.systems[-1], measures), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a mistake of the user is one line, and the last line is the summary as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.compare_runs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder or s3:// address of a run")
    parser.add_argument("--out", help="write metrics and comparisons here as JSON")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS), help="held-out rows to measure")
    parser.add_argument("--ks", nargs="+", type=int, default=[5, 10, 50], help="lengths of lists to measure")
    parser.add_argument("--resamples", type=int, default=1000, help="resamples of the intervals")
    arguments = parser.parse_args(argv)
    runs = [Store(run if artifacts.is_remote(run) else artifacts.filesystem_of(run)[1]) for run in arguments.runs]
    try:
        described = describe_runs(runs)
        rng = np.random.default_rng(0)
        found = compare_runs(runs, ks=arguments.ks, resamples=arguments.resamples, rng=rng, splits=arguments.splits)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_tables(found, arguments.ks)
    if arguments.out:
        fs, path = artifacts.filesystem_of(arguments.out)
        with fs.open_output_stream(path) as stream:
            stream.write(strict_json({"runs": described, **found._asdict()}).encode())
    print(
        json.dumps(
            {"job": "jobs.compare_runs", "status": "done", "runs": len(runs), "systems": found.systems, "out": arguments.out}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
