"""The ledger seen by Ray: sets of requests, and the answers to them.

Sets of requests travel as sorted 64-bit numbers in the object store, 8 bytes a request, shared by all workers of a node.
"""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset

from digr import artifacts
from digr.interests import ledger
from digr.interests.merging import latest_responses
from digr.interests.summary import count_outcomes
from digr.tables import TABLES
from jobs.runtime.parts import read_parts

_SORT_ROWS = 20_000
"""Responses of one sorted block, about 20 MB."""


def map_tables(dataset: Dataset, function: Any, **arguments: Any) -> Dataset:
    """Map whole blocks, as Arrow tables, through `function(table, **arguments)`."""
    return dataset.map_batches(function, batch_size=None, batch_format="pyarrow", fn_kwargs=arguments or None)


class Plan(NamedTuple):
    """What is to ask of a miner: references to all digests and to the missing ones, and both numbers."""

    wanted: Any
    missing: Any
    num_wanted: int
    num_missing: int


def make_plan(requests: Dataset, uri: str, retry_failed: bool) -> Plan:
    """Compare the requests with the ledger."""
    digests = map_tables(requests, _digests).to_arrow_refs()
    task: Any = ray.remote(_plan).options(num_returns=4)
    wanted, missing, num_wanted, num_missing = task.remote(digests, uri, retry_failed)
    return Plan(wanted, missing, *ray.get([num_wanted, num_missing]))


def _digests(requests: pa.Table) -> pa.Table:
    return pa.table({"number": ledger.digest_numbers(requests["request_digest"])})


def _plan(digests: list[Any], uri: str, retry_failed: bool) -> tuple[np.ndarray, np.ndarray, int, int]:
    numbers = [ray.get(part)["number"].to_numpy() for part in digests]
    wanted = np.unique(np.concatenate([np.empty(0, np.uint64), *numbers]))
    missing = np.setdiff1d(wanted, ledger.done_numbers(uri, retry_failed), assume_unique=True)
    return wanted, missing, len(wanted), len(missing)


@ray.remote
def join_requests(*numbers: np.ndarray) -> np.ndarray:
    """Return the sorted union of several sets of requests."""
    return np.unique(np.concatenate(numbers))


def filter_requests(table: pa.Table, numbers: Any) -> pa.Table:
    """Keep the rows whose request is in a set, given by reference."""
    return table.filter(ledger.contains(ray.get(numbers), table["request_digest"]))


def by_owner(uri: str, wanted: Any, num_requests: int) -> Dataset:
    """Return the ledger's answers to the wanted requests of one kind of owner, all of an owner in one block, by owner_id."""
    if num_requests <= _SORT_ROWS:  # one block, which a task sorts before Ray Data would have started its own
        task: Any = ray.remote(_sorted)
        return ray.data.from_arrow_refs([task.remote(uri, wanted)])
    chosen = map_tables(read_parts(uri), filter_requests, numbers=wanted).repartition(num_requests // _SORT_ROWS)
    # rows of equal key are in one block after a sort
    return chosen.sort("owner_id").materialize()


def _sorted(uri: str, wanted: np.ndarray) -> pa.Table:
    schema = TABLES[ledger.LEDGER].schema
    batches = artifacts.open_parts(uri, schema).to_batches()
    found = [batch.filter(ledger.contains(wanted, batch["request_digest"])) for batch in batches]
    return pa.Table.from_batches(found, schema).sort_by("owner_id")


def outcomes(responses: pa.Table) -> pa.Table:
    """Count how whole owners' requests ended, each once."""
    return count_outcomes(latest_responses(responses))
