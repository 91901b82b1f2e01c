"""Fit the ranker that orders candidates, and its ablations: artifacts `ranking_examples` and `ranker`.

Each is fitted twice. `ranker/<system>/valid` learns only from training rows and ranks the validation rows;
`ranker/<system>/test` learns from both, ranks the test rows and is served.
"""

from collections.abc import Mapping
from typing import Any

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.partitions import STARTS, part_starts, parts_of
from digr.ranking.systems import systems_of
from jobs.ranking.fits import EXAMPLES, LEARNED_FROM, RANKER, Examples, Fit, fit_all
from jobs.runtime.command_line import main
from jobs.runtime.datasets import map_parts
from jobs.runtime.progress import BARS
from jobs.runtime.session import Options, log, start_ray
from jobs.runtime.stage import Output, run_stage


def run(config: Config, options: Options) -> dict[str, Any]:
    """Fit all rankers of the run with Ray."""
    chosen = config.ranking
    systems = systems_of(chosen.ablations)

    def build(store: Store, work: str) -> Mapping[str, Output]:
        start_ray(config)
        index = artifacts.require(store, "ranking_index").facts["fit_rows"]
        split_rows = artifacts.require(store, "histories").facts["split_rows"]
        num_before = index["num_rows"] - index["first_number"] if index["chosen"] == "period" else index["num_rows"]
        rate = min(1.0, chosen.max_fit_rows / max(1, num_before + split_rows["valid"]))
        arguments = (index["first_number"], index["chosen"], rate)
        rows = map_parts(config, store, Examples, parts_of(store, "user"), [EXAMPLES], arguments=arguments)[EXAMPLES]
        log(RANKER, f"{rows} candidates to learn from, {rate:.0%} of the requests")
        names = {system.fitted for system in systems}
        wanted = [Fit(system.name, fitted) for system in systems if system.name in names for fitted in LEARNED_FROM]
        facts: dict[str, Any] = {}
        for found in fit_all(config, store, wanted):
            facts |= found
            BARS.show(RANKER, len(facts), len(wanted))
            log(RANKER, f"{len(facts)}/{len(wanted)} fitted: {', '.join(found)}")
        return {RANKER: Output(facts=facts), EXAMPLES: Output(rows, facts={STARTS: part_starts(store, "histories")})}

    return run_stage(
        config,
        options,
        outputs=[RANKER, EXAMPLES],
        sections=["ranking"],
        inputs=["items", "histories", "ranking_index"],
        build=build,
    )


if __name__ == "__main__":
    main(run)
