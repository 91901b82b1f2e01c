"""Fit the quantiser on item vectors and give every item its semantic ID."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.sids.assignment import assign_sids, sid_table
from digr.sids.diagnostics import check_usage, cointeraction_shares, describe_sids, rounded
from digr.sids.fitting import fit_quantiser, sample_rows, save_quantiser, take_rows
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


def _build(config: Config, store: Store) -> Mapping[str, Made]:
    sids, seed = config.sids, config.run.seed
    num_items = artifacts.dataset_of(store, "item_embeddings").count_rows()
    rows = sample_rows(num_items, sids.max_fit_items, seed)
    vectors = take_rows(vector_batches(store), rows)
    say("item_sids", f"fitting {sids.quantiser} {list(sids.level_sizes)} on {len(vectors)} items")
    device = "cuda" if config.cluster.use_gpu else "cpu"
    quantiser = fit_quantiser(vectors, sids, seed, lambda text: say("item_sids", text), device)
    assigned = assign_sids(
        quantiser,
        lambda: vector_batches(store),
        disambiguation=sids.disambiguation,
        spread=sids.spread,
        seed=seed,
    )
    facts = describe_sids(quantiser, assigned, vectors, rows, seed=seed)
    check_usage(facts["usage_rate"], sids.level_sizes, sids.min_usage_rate)
    item_ids = pa.chunked_array([batch["item_id"] for batch in artifacts.iter_table(store, "item_embeddings", ["item_id"])])
    histories = artifacts.iter_table(store, "histories", ["split", "history", "target"])
    shares, num_pairs = cointeraction_shares(histories, item_ids, assigned.codes[:, : len(sids.level_sizes)])
    facts |= rounded({"cointeraction_prefix_share": shares}) | {"num_cointeraction_pairs": num_pairs}
    facts["level_sizes"] = list(assigned.level_sizes)
    say("item_sids", f"codes used per level {facts['usage_rate']}, colliding before the suffix {facts['collision_rate']:.2%}")
    artifacts.write_table(store, "item_sids", sid_table(item_ids, assigned.codes))
    with tempfile.TemporaryDirectory() as folder:
        save_quantiser(quantiser, Path(folder))
        artifacts.put_files(store, "quantiser", Path(folder))
    return {
        "item_sids": Made(num_items, facts=facts),
        "quantiser": Made(facts={"kind": sids.quantiser, "level_sizes": list(sids.level_sizes), "dim": vectors.shape[1]}),
    }


if __name__ == "__main__":
    main(run)
