"""The ledger seen by Ray: what is still to ask, following answers while they come, and counting them.

Sets of requests travel as sorted 64-bit numbers in the object store, 8 bytes a request, shared by all workers of a node.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset

from digr import artifacts
from digr.interests import ledger
from digr.interests.merging import latest_responses
from digr.interests.spending import Spending, progress_text
from digr.interests.summary import count_outcomes
from jobs.runtime import say

_SAY_SECONDS = 5.0
_JOIN_BLOCKS = 512
"""Parts after which the small ones are joined, so that also a killed run's ledger is read fast."""
_SORT_ROWS = 20_000
"""Responses of one sorted block, about 20 MB."""


def map_tables(dataset: Dataset, function: Any, **arguments: Any) -> Dataset:
    """Map whole blocks, as Arrow tables, through `function(table, **arguments)`."""
    return dataset.map_batches(function, batch_size=None, batch_format="pyarrow", fn_kwargs=arguments or None)


def plan(requests: Dataset, uri: str, retry_failed: bool) -> tuple[Any, Any, int, int]:
    """Compare the requests with the ledger; returns references to all digests and to the missing ones, and both numbers."""
    digests = map_tables(requests, _digests).to_arrow_refs()
    task: Any = ray.remote(_plan).options(num_returns=4)
    wanted, missing, num_wanted, num_missing = task.remote(digests, uri, retry_failed)
    return wanted, missing, *ray.get([num_wanted, num_missing])


def _digests(requests: pa.Table) -> pa.Table:
    return pa.table({"number": ledger.digest_numbers(requests["request_digest"])})


def _plan(digests: list[Any], uri: str, retry_failed: bool) -> tuple[np.ndarray, np.ndarray, int, int]:
    numbers = [ray.get(part)["number"].to_numpy() for part in digests]
    wanted = np.unique(np.concatenate([np.empty(0, np.uint64), *numbers]))
    missing = np.setdiff1d(wanted, ledger.done_numbers(uri, retry_failed), assume_unique=True)
    return wanted, missing, len(wanted), len(missing)


@ray.remote
def join(*numbers: np.ndarray) -> np.ndarray:
    """Return the sorted union of several sets of requests."""
    return np.unique(np.concatenate(numbers))


def only(table: pa.Table, numbers: Any) -> pa.Table:
    """Keep the rows whose request is in a set, given by reference."""
    return table.filter(ledger.contains(ray.get(numbers), table["request_digest"]))


def by_owner(uri: str, wanted: Any, num_requests: int) -> Dataset:
    """Return the ledger's answers to the wanted requests of one kind of owner, all of an owner in one block, by owner_id."""
    filesystem, _ = artifacts.filesystem_of(uri)
    responses = ray.data.read_parquet(artifacts.list_parts(uri), filesystem=filesystem)
    chosen = map_tables(responses, only, numbers=wanted).repartition(max(1, num_requests // _SORT_ROWS))
    # rows of equal key are in one block after a sort
    return chosen.sort("owner_id").materialize()


def follow(answers: Sequence[Dataset], uri: str, expected: Mapping[str, int]) -> int:
    """Let some miners answer at once, with progress lines; returns how many answers were written.

    Args:
        answers: what `sink.write` returned of each miner's batches.
        expected: miner -> responses that should come.
    """
    written = answers[0].union(*answers[1:]) if len(answers) > 1 else answers[0]
    join_parts: Any = ray.remote(ledger.join_parts)
    start, joined = time.monotonic(), ray.put(None)
    spoken, spent = dict.fromkeys(expected, 0.0), dict.fromkeys(expected, Spending())
    counts = {name: Counter[str]() for name in expected}
    for number, batch in enumerate(written.iter_batches(batch_size=None, batch_format="pyarrow"), 1):
        assert isinstance(batch, pa.Table)
        if number % _JOIN_BLOCKS == 0:
            ray.get(joined)
            joined = join_parts.remote(uri)
        for row in batch.to_pylist():
            name, now = row["miner"], time.monotonic()
            counts[name][row["status"]] += row["rows"]
            spent[name] = spent[name].plus(Spending(row["tokens"], row["usd"]))
            if (done := counts[name].total()) >= expected[name] or now - spoken[name] > _SAY_SECONDS:
                spoken[name] = now
                say("interests", f"{name}: {progress_text(done, expected[name], now - start, spent[name])}, {dict(counts[name])}")
    ray.get(joined)
    ray.get(join_parts.remote(uri))
    return sum(one.total() for one in counts.values())


def outcomes(responses: pa.Table) -> pa.Table:
    """Count how whole owners' requests ended, each once."""
    return count_outcomes(latest_responses(responses))
