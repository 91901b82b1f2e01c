"""Fit the quantiser on item vectors and give every item its semantic ID."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.sids.assignment import SidAssignment, assign_sids, sid_table
from digr.sids.diagnostics import check_usage, cointeraction_shares, describe_sids, rounded
from digr.sids.fitting import Quantiser, fit_quantiser, sample_rows, save_quantiser, take_rows
from jobs.runtime import Options, main, say
from jobs.stage import Made, run_stage


def run(config: Config, options: Options) -> dict[str, Any]:
    """Build `item_sids` and `quantiser`."""

    def build(store: Store, work: str) -> Mapping[str, Made]:
        return _build(config, store)

    return run_stage(
        config,
        options,
        outputs=["item_sids", "quantiser"],
        sections=["sids"],
        inputs=["item_embeddings", "histories"],
        build=build,
    )


def vector_batches(store: Store) -> Iterator[np.ndarray]:
    """Stream the item vectors, [B, D] at a time."""
    for batch in artifacts.iter_table(store, "item_embeddings", ["embedding"]):
        if len(batch):
            yield batch["embedding"].flatten().to_numpy().reshape(len(batch), -1)


class Built(NamedTuple):
    """A fitted quantiser and the SIDs of the whole catalogue."""

    quantiser: Quantiser
    item_ids: pa.ChunkedArray
    assigned: SidAssignment
    facts: dict[str, Any]


def fit_and_assign(store: Store, config: Config, report: Callable[[str], None]) -> Built:
    """Fit on a sample of the item vectors, assign all of them and measure the result; writes nothing."""
    sids, seed = config.sids, config.run.seed
    rows = sample_rows(artifacts.dataset_of(store, "item_embeddings").count_rows(), sids.max_fit_items, seed)
    vectors = take_rows(vector_batches(store), rows)
    report(f"fitting {sids.quantiser} {list(sids.level_sizes)} on {len(vectors)} items")
    quantiser = fit_quantiser(vectors, sids, seed, report, device="cuda" if config.cluster.use_gpu else "cpu")
    assigned = assign_sids(
        quantiser, lambda: vector_batches(store), disambiguation=sids.disambiguation, spread=sids.spread, seed=seed
    )
    facts = describe_sids(quantiser, assigned, vectors, rows, seed=seed)
    item_ids = pa.chunked_array(
        [batch["item_id"] for batch in artifacts.iter_table(store, "item_embeddings", ["item_id"])], pa.string()
    )
    histories = artifacts.iter_table(store, "histories", ["split", "history", "target"])
    shares, num_pairs = cointeraction_shares(histories, item_ids, assigned.codes[:, : len(sids.level_sizes)])
    facts |= rounded({"cointeraction_prefix_share": shares}) | {"num_cointeraction_pairs": num_pairs}
    return Built(quantiser, item_ids, assigned, facts | {"level_sizes": list(assigned.level_sizes)})


def _build(config: Config, store: Store) -> Mapping[str, Made]:
    built = fit_and_assign(store, config, lambda text: say("item_sids", text))
    sizes, facts = list(config.sids.level_sizes), built.facts
    usage = ", ".join(f"{rate:.1%}" for rate in facts["usage_rate"])
    say(
        "item_sids",
        f"codes used per level {usage}; colliding {facts['raw_collision_rate']:.1%}, {facts['collision_rate']:.1%} "
        f"after spreading, suffix codes for {facts['suffix_rate']:.1%}",
    )
    check_usage(facts["usage_rate"], sizes, config.sids.min_usage_rate)
    artifacts.write_table(store, "item_sids", sid_table(built.item_ids, built.assigned.codes))
    with tempfile.TemporaryDirectory() as folder:
        save_quantiser(built.quantiser, Path(folder))
        artifacts.put_files(store, "quantiser", Path(folder))
    return {
        "item_sids": Made(len(built.item_ids), facts=facts),
        "quantiser": Made(facts={"kind": config.sids.quantiser, "level_sizes": sizes}),
    }


if __name__ == "__main__":
    main(run)
