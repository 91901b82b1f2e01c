"""Fit the quantiser on item vectors, or keep an earlier run's, and assign a semantic ID to every item."""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from digr import artifacts, partitions
from digr.artifacts import Store
from digr.config import Config
from digr.sids.assignment import sid_table
from digr.sids.building import fit_and_assign, keep_and_assign, num_vectors, save_built
from digr.sids.diagnostics import check_usage
from digr.sids.sizes import sized
from jobs.runtime.command_line import main
from jobs.runtime.session import Options, log
from jobs.runtime.stage import Output, run_stage


def run(config: Config, options: Options) -> dict[str, Any]:
    """Build `item_sids` and `quantiser`."""
    earlier = Store(config.sids.keep_from, config.run.variant) if config.sids.keep_from else None

    def build(store: Store, work: str) -> Mapping[str, Output]:
        return _build(config, store, work, earlier)

    return run_stage(
        config,
        options,
        outputs=["item_sids", "quantiser"],
        sections=["sids"],
        inputs=["item_embeddings", "histories"],
        files={name: earlier.uri(name) for name in ("item_sids", "quantiser")} if earlier else {},
        build=build,
    )


def _build(config: Config, store: Store, work: str, earlier: Store | None) -> Mapping[str, Output]:
    report, seed = partial(log, "item_sids"), config.run.seed
    if earlier:
        built = keep_and_assign(store, earlier, config.sids, seed=seed)
        report(
            f"{built.facts['num_kept_items']} items keep their SIDs, {built.facts['num_new_items']} are new, "
            f"{built.facts['num_retired_items']} SIDs are retired"
        )
    else:
        config = config.model_copy(update={"sids": sized(config.sids, num_vectors(store))})
        fit = _fit_with_workers(config, store, work, report)
        built = fit_and_assign(store, config.sids, seed=seed, report=report, fit=fit)
    sizes, facts = [len(book) for book in built.quantiser.codebooks], built.facts
    usage = ", ".join(f"{rate:.1%}" for rate in facts["usage_rate"])
    report(
        f"codes used per level {usage}; colliding by nearest codes {facts['raw_collision_rate']:.1%}, by assigned codes "
        f"{facts['collision_rate']:.1%} ({facts['moved_rate']:.1%} moved); suffix codes for {facts['suffix_rate']:.1%}"
    )
    check_usage(facts["usage_rate"], sizes, config.sids.min_usage_rate)
    table = sid_table(built.item_ids, built.assigned.codes)
    artifacts.write_table(store, "item_sids", table, partitions.part_starts(store, "item_embeddings"))
    with tempfile.TemporaryDirectory() as folder:
        save_built(built, Path(folder))
        artifacts.put_files(store, "quantiser", Path(folder))
    return {
        "item_sids": Output(len(built.item_ids), facts=facts),
        "quantiser": Output(facts={"kind": config.sids.quantiser, "level_sizes": sizes, "num_retired_sids": len(built.retired)}),
    }


def _fit_with_workers(config: Config, store: Store, work: str, report: Callable[[str], None]) -> Callable[[Any], Any] | None:
    """Return a function that fits the quantiser on Ray Train's workers; None if this process is enough, without a GPU."""
    sids = config.sids
    many = sids.quantiser == "rqvae" and min(num_vectors(store), sids.max_fit_items) > sids.workers_above
    if not many and not config.cluster.use_gpu:
        return None
    from jobs.training.sid_workers import fit_with_workers

    num_workers = config.train.num_workers if many else 1
    return lambda fusion: fit_with_workers(config, store, work, fusion, report, num_workers=num_workers)


if __name__ == "__main__":
    main(run)
