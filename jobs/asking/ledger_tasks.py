"""Ray tasks on the ledger: compare requests with it, and sort its answers by part.

Sets of requests are sorted 64-bit numbers in the object store, 8 bytes per request, shared by all workers of a node.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import Dataset

from digr import artifacts
from digr.interests import ledger
from digr.interests.merging import latest_responses
from digr.interests.summary import add_outcomes, count_outcomes
from digr.partitions import part_numbers
from digr.tables import TABLES, Owner
from jobs.runtime.datasets import map_tables, read_parts

_BLOCK_ANSWERS = 20_000
"""Answers of one sorted block, about 20 MB."""


class Plan(NamedTuple):
    """Requests of a miner: references to the digests of all and of the missing ones, and the number of each."""

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


def answers_by_part(
    uri: str, wanted: Any, owner: Owner, starts: Sequence[str], folder: str, *, num_requests: int, name: str = ledger.LEDGER
) -> pa.Table:
    """Write a ledger's answers to the wanted requests about one kind of owner, one per request, into a file per part.

    Ray Data sorts the answers by part, so a task holds those of a few parts. A part without answers has no file.

    Args:
        wanted: reference to the requests, of this owner or others too.
        starts: first id of each part of the owners.
        folder: address of the files, which `artifacts.part_name` names.
        name: name of the ledger.

    Returns:
        Counts by miner and status, see `count_outcomes`.
    """
    artifacts.remove(folder)  # of a killed run
    if len(starts) == 1:  # a single task finishes before Ray Data would have started
        task: Any = ray.remote(_only_part)
        return ray.get(task.remote(uri, wanted, owner, folder, name))
    chosen = map_tables(read_parts(uri), _numbered, numbers=wanted, owner=owner, starts=starts)
    blocks = chosen.repartition(max(1, min(len(starts), num_requests // _BLOCK_ANSWERS))).sort("part")  # parts stay whole
    counted = map_tables(blocks, _write_answers, folder=folder).iter_batches(batch_size=None, batch_format="pyarrow")
    return add_outcomes([batch for batch in counted if isinstance(batch, pa.Table)])


def _numbered(answers: pa.Table, numbers: Any, owner: Owner, starts: Sequence[str]) -> pa.Table:
    chosen = filter_requests(answers.filter(pc.equal(answers["owner"], owner)), numbers)
    return chosen.append_column("part", pa.array(part_numbers(starts, chosen["owner_id"])))


def _only_part(uri: str, wanted: np.ndarray, owner: Owner, folder: str, name: str) -> pa.Table:
    schema = TABLES[name].schema
    batches = artifacts.open_parts(uri, schema).to_batches()
    found = [batch.filter(ledger.contains(wanted, batch["request_digest"])) for batch in batches]
    answers = pa.Table.from_batches(found, schema)
    answers = answers.filter(pc.equal(answers["owner"], owner))
    return _write_answers(answers.append_column("part", pa.array(np.zeros(len(answers), np.int64))), folder)


def _write_answers(answers: pa.Table, folder: str) -> pa.Table:
    """Write whole parts, each sorted by owner, and count requests by miner and status."""
    latest = latest_responses(answers).sort_by([("part", "ascending"), ("owner_id", "ascending")])
    part = np.asarray(latest["part"])
    numbers, cuts = np.unique(part, return_index=True)
    for number, (start, end) in zip(numbers.tolist(), itertools.pairwise([*cuts.tolist(), len(part)]), strict=True):
        name = artifacts.part_name(number).removesuffix(".parquet")
        ledger.write_part(folder, name, latest.slice(start, end - start).drop_columns("part"))
    return count_outcomes(latest)
