"""The table that compares miners: how their requests ended, what they cost, and how many interests they found."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

OUTCOME_SUMS = ("rows", "broken_images", "input_tokens", "output_tokens", "cost_usd")


def count_outcomes(responses: pa.Table) -> pa.Table:
    """Count responses by miner and status, each request once, and sum the columns `OUTCOME_SUMS`."""
    broken = pc.starts_with(responses["reason"], "broken image").fill_null(False).cast(pa.int64())
    ones = pa.array(np.ones(len(responses), np.int64))
    table = responses.select(["miner", "status", "input_tokens", "output_tokens", "cost_usd"])
    return add_outcomes([table.append_column("rows", ones).append_column("broken_images", broken)])


def add_outcomes(parts: Sequence[pa.Table]) -> pa.Table:
    """Add up counts of parts of the responses."""
    table = pa.concat_tables([part.select(["miner", "status", *OUTCOME_SUMS]) for part in parts])
    grouped = table.group_by(["miner", "status"]).aggregate([(name, "sum") for name in OUTCOME_SUMS])
    return grouped.rename_columns([name.removesuffix("_sum") for name in grouped.column_names])


def miner_table(miners: Sequence[str], outcomes: pa.Table, interests: Iterable[pa.Table]) -> dict[str, dict[str, Any]]:
    """Return each miner's requests, answers, cost and interests, in one streamed pass over the merged interests.

    "interests" counts the merged interests that the miner found, "interests_per_request" divides them by all its requests,
    and "agreement_rate" is the share of them that another miner found too; None if it is the only miner or found none.

    Args:
        miners: names, in the order of the result.
        outcomes: from `count_outcomes`.
        interests: batches of merged interests as `flat_interests` makes them.
    """
    rows = outcomes.to_pylist()
    named, shared = dict.fromkeys(miners, 0), dict.fromkeys(miners, 0)
    for batch in interests:
        lists = batch["miners"]
        flat = pc.list_flatten(lists)
        several = pc.greater(pc.list_value_length(lists), 1).take(pc.list_parent_indices(lists))
        for names, counts in ((flat, named), (flat.filter(several), shared)):
            for entry in pc.value_counts(names).to_pylist():
                counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    table = {}
    for miner in miners:
        mine = [row for row in rows if row["miner"] == miner]
        asked, ok = sum(row["rows"] for row in mine), sum(row["rows"] for row in mine if row["status"] == "ok")
        table[miner] = {
            "requests": asked,
            "ok": ok,
            "failed": asked - ok,
            **{name: sum(row[name] for row in mine) for name in OUTCOME_SUMS[1:]},
            "interests": named[miner],
            "interests_per_request": round(named[miner] / asked, 4) if asked else 0.0,
            "agreement_rate": round(shared[miner] / named[miner], 4) if named[miner] and len(miners) > 1 else None,
        }
    return table


def found_without(miners: pa.Array | pa.ChunkedArray, left_out: Sequence[str]) -> np.ndarray:
    """Return for each list of miners whether it has one that is not in `left_out`."""
    lists = miners.combine_chunks() if isinstance(miners, pa.ChunkedArray) else miners
    kept = ~np.asarray(pc.is_in(pc.list_flatten(lists), pa.array(list(left_out), pa.string())))
    found = np.zeros(len(lists), bool)
    found[np.asarray(pc.list_parent_indices(lists))[kept]] = True
    return found
