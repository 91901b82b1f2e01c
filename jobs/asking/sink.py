"""Where the answers of a batch go: into the ledger at once, and their cost to the meter of the budget."""

from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from digr.artifacts import Store
from digr.config.interests import InterestsConfig
from digr.interests import ledger
from jobs.asking import budget


class Sink(NamedTuple):
    """Where answers go: the ledger, and the meter of the budget, from `budget.open_meter`."""

    uri: str
    meter: Any


def open_sink(interests: InterestsConfig, store: Store) -> Sink:
    """Open a run's ledger to go on where it stopped."""
    uri = ledger.open_ledger(store)
    return Sink(uri, budget.open_meter(interests, uri))


def write(raw: pa.Table, sink: Sink) -> pa.Table:
    """Append a batch of raw responses to the ledger; returns its counts by miner and status."""
    rows = ledger.finish_responses(raw)
    if len(rows):
        ledger.append(sink.uri, rows)
    budget.settle(sink.meter, rows)
    tokens = pc.add(rows["input_tokens"], rows["output_tokens"])
    table = rows.select(["miner", "status"]).append_column("tokens", tokens).append_column("usd", rows["cost_usd"])
    grouped = table.group_by(["miner", "status"]).aggregate([([], "count_all"), ("tokens", "sum"), ("usd", "sum")])
    return grouped.rename_columns({"count_all": "rows", "tokens_sum": "tokens", "usd_sum": "usd"})
