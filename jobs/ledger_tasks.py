"""The ledger seen by Ray: what is still to ask, writing answers while they come, and counting them.

Sets of requests travel as sorted 64-bit numbers in the object store, 8 bytes a request, shared by all workers of a node.
"""

import time
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import Dataset

from digr.interests import ledger
from digr.interests.merging import latest_responses
from jobs.runtime import say

_SAY_SECONDS = 5.0


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


def write_answers(answers: Dataset, uri: str, name: str, expected: int) -> None:
    """Append raw responses to the ledger block by block, with progress lines."""
    written = map_tables(answers, _write, uri=uri)
    start, spoken, counts, tokens, usd = time.monotonic(), 0.0, Counter[str](), 0, 0.0
    for batch in written.iter_batches(batch_size=None, batch_format="pyarrow"):
        assert isinstance(batch, pa.Table)
        for row in batch.to_pylist():
            counts[row["status"]] += row["rows"]
            tokens, usd = tokens + row["tokens"], usd + row["usd"]
        done, now = sum(counts.values()), time.monotonic()
        if done >= expected or now - spoken > _SAY_SECONDS:
            spoken = now
            rate = done / max(now - start, 1e-9)
            cost = f", {tokens} tokens, {usd:.4f} USD" if tokens else ""
            say("interests", f"{name}: {done}/{expected}, {rate:.1f} items/s, {dict(counts)}{cost}")


def _write(raw: pa.Table, uri: str) -> pa.Table:
    rows = ledger.finish_responses(raw)
    if len(rows):
        ledger.append(uri, rows)
    tokens = pc.add(rows["input_tokens"], rows["output_tokens"])
    table = pa.table({"status": rows["status"], "tokens": tokens, "usd": rows["cost_usd"]})
    grouped = table.group_by("status").aggregate([([], "count_all"), ("tokens", "sum"), ("usd", "sum")])
    return pa.table(
        {
            "status": grouped["status"],
            "rows": grouped["count_all"],
            "tokens": grouped["tokens_sum"],
            "usd": grouped["usd_sum"],
        }
    )


def statuses(responses: pa.Table) -> pa.Table:
    """Count how whole owners' requests ended, each once, and how many were asked without their broken image."""
    latest = latest_responses(responses)
    counted = pc.value_counts(latest["status"].combine_chunks())
    broken = pc.sum(pc.starts_with(latest["reason"], "broken image")).as_py() or 0
    found = [*counted.field("values").to_pylist(), "broken image"]
    return pa.table({"outcome": found, "rows": [*counted.field("counts").to_pylist(), broken]})
