"""The ledger of responses: an append-only folder of Parquet parts with every request and its response.

Miners write `interest_responses`; the judge writes `interest_verdicts`, whose rows also hold the verdict.

Each part becomes visible only when complete, so a killed run loses only the answers since the last part. After a retry or a
killed worker a request may be in the ledger twice; `merging.latest_responses` picks one row.
"""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
from jaxtyping import UInt64

from digr import artifacts
from digr.artifacts import Store, filesystem_of
from digr.interests.parsing import parse_response
from digr.interests.spending import Spending
from digr.tables import TABLES, conform

LEDGER, VERDICTS = "interest_responses", "interest_verdicts"
_SCHEMA = TABLES[LEDGER].schema
_JOINED_BYTES = 32 << 20
_MIN_JOINED = 16
RAW_SCHEMA = pa.schema(
    [field if field.name != "status" else pa.field("status", pa.string()) for field in _SCHEMA],
)
"""A miner's raw responses: the ledger's columns, with `status` null if it follows from the text of the response."""


def open_ledger(store: Store, name: str = LEDGER) -> str:
    """Return the address of the ledger's folder, ready for appending; earlier parts stay.

    Removes the manifest, so that nobody reads the ledger as finished while it grows, and drafts of a killed run.
    """
    uri = store.uri(name)
    fs, path = filesystem_of(uri)
    fs.create_dir(path, recursive=True)
    for entry in fs.get_file_info(pafs.FileSelector(path)):
        name = Path(entry.path).name
        if name in (artifacts.MANIFEST, artifacts.OLD_MANIFEST) or name.startswith(".draft-"):
            fs.delete_file(entry.path)
    return uri


def finish_responses(raw: pa.Table) -> pa.Table:
    """Turn raw responses into ledger rows: a missing status is found by parsing the text."""
    status, reason = raw["status"].to_pylist(), raw["reason"].to_pylist()
    response = raw["response"].to_pylist()
    for index, given in enumerate(status):
        if given is None:
            parsed = parse_response(response[index])
            note = "; ".join(part for part in (reason[index], parsed.reason) if part)
            status[index], reason[index] = parsed.status, note or None
    for name, values in (("status", status), ("reason", reason)):
        raw = raw.set_column(raw.column_names.index(name), name, pa.array(values, pa.string()))
    return conform(LEDGER, raw, "miner's responses")


def append(uri: str, responses: pa.Table) -> None:
    """Write rows as one new part, visible only when complete; names of parts sort in the order of writing."""
    name = hashlib.sha256("".join(responses["request_digest"].to_pylist()).encode()).hexdigest()[:16]
    write_part(uri, f"part-{time.time_ns():020d}-{name}", responses)


def join_parts(uri: str) -> None:
    """Join neighbouring small parts into larger ones, so that a ledger written batch by batch is fast to read.

    The order of rows stays. A kill during this leaves some rows twice, which readers of a ledger handle.
    """
    fs, path = filesystem_of(uri)
    entries = sorted(fs.get_file_info(pafs.FileSelector(path)), key=lambda entry: entry.path)
    group: list[str] = []
    size = 0
    for entry in [*(entry for entry in entries if entry.path.endswith(".parquet")), None]:
        if group and (entry is None or size + entry.size > _JOINED_BYTES):
            if len(group) >= _MIN_JOINED:
                # this name sorts right after the newest of them
                write_part(uri, f"{Path(group[-1]).stem}j", pads.dataset(group, filesystem=fs).to_table())
                for joined in group:
                    fs.delete_file(joined)
            group, size = [], 0
        if entry is not None:
            group, size = [*group, entry.path], size + entry.size


def write_part(uri: str, name: str, responses: pa.Table) -> None:
    """Write a Parquet part that is visible only when complete."""
    with artifacts.open_part(f"{uri}/{name}.parquet", responses.schema) as writer:
        writer.write_table(responses)


def digest_numbers(digests: pa.Array | pa.ChunkedArray) -> UInt64[np.ndarray, " N"]:
    """Return 16-digit hexadecimal digests as 64-bit numbers, which need 8 bytes per row and no Python to compare.

    Raises:
        ValueError: a digest is null or not 16 digits long.
    """
    array = digests.combine_chunks() if isinstance(digests, pa.ChunkedArray) else digests
    array = array.cast(pa.string())
    if len(array) == 0:
        return np.empty(0, np.uint64)
    offsets = np.frombuffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array) + 1]
    if array.null_count or not (np.diff(offsets) == 16).all():
        raise ValueError("interest_responses: column request_digest: expected 16 hexadecimal digits in every row")
    letters = np.frombuffer(array.buffers()[2], np.uint8)[offsets[0] : offsets[-1]].reshape(-1, 16)
    nibbles = np.where(letters >= ord("a"), letters - ord("a") + 10, letters - ord("0")).astype(np.uint8)
    return ((nibbles[:, 0::2] << 4) | nibbles[:, 1::2]).copy().view(">u8")[:, 0].astype(np.uint64)


def done_numbers(uri: str, retry_failed: bool = False) -> UInt64[np.ndarray, " N"]:
    """Return the sorted, unique digests of all requests that are done.

    Streams two columns of the parts, so memory is 8 bytes per row of the ledger.

    Args:
        retry_failed: count only "ok" rows as done, instead of every answer. An "error" (no answer) never counts as done.
    """
    numbers = [np.empty(0, np.uint64)]
    for batch in artifacts.open_parts(uri, _SCHEMA).to_batches(columns=["request_digest", "status"]):
        done = pc.equal(batch["status"], "ok") if retry_failed else pc.not_equal(batch["status"], "error")
        numbers.append(digest_numbers(batch.filter(done)["request_digest"]))
    return np.unique(np.concatenate(numbers))


def spent_so_far(uri: str, free_miners: Sequence[str] = ()) -> Spending:
    """Return what all answers in the ledger cost, except those of free miners (a replayed answer was paid elsewhere)."""
    spent = Spending()
    columns = ["miner", "input_tokens", "output_tokens", "cost_usd"]
    for batch in artifacts.open_parts(uri, _SCHEMA).to_batches(columns=columns):
        batch = batch.filter(pc.invert(pc.is_in(batch["miner"], pa.array(list(free_miners), pa.string()))))
        tokens, written, usd = (pc.sum(batch[column]).as_py() or 0 for column in columns[1:])
        spent = spent.plus(Spending(tokens + written, usd))
    return spent


def example_answers(uri: str, miner: str, failed: bool, num: int = 3) -> list[str]:
    """Return a miner's newest answers with status "error", or with any other status, as status, reason and text."""
    wanted = (pads.field("miner") == miner) & ((pads.field("status") == "error") == failed)
    rows: list[dict] = []
    for part in reversed(list(artifacts.open_parts(uri, _SCHEMA).get_fragments())):
        rows += part.head(num - len(rows), columns=["status", "reason", "response"], filter=wanted).to_pylist()
        if len(rows) >= num:
            break
    return [f"{row['status']} ({row['reason']}): {(row['response'] or '')[:200]!r}" for row in rows]


def contains(numbers: UInt64[np.ndarray, " N"], digests: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return for each digest whether it is among the sorted numbers."""
    asked = digest_numbers(digests)
    if not len(numbers):
        return pa.array(np.zeros(len(asked), bool))
    return pa.array(numbers[np.minimum(np.searchsorted(numbers, asked), len(numbers) - 1)] == asked)


def raw_responses(requests: pa.Table, miner: str, prompt_version: str, modality: str | list[str], **columns: list) -> pa.Table:
    """Return the answers to requests, in their order, in the columns of `RAW_SCHEMA`.

    Args:
        modality: what the prompts really showed, one value for all rows or one per row.
        columns: `response`, and any of `status`, `reason`, `input_tokens`, `output_tokens`, `cost_usd`; absent ones are
            null, or 0 for the counts. Lone surrogates, which no table can hold, become question marks.
    """
    rows = len(requests)
    values = {
        "owner": requests["owner"],
        "owner_id": requests["owner_id"],
        "miner": [miner] * rows,
        "request_digest": requests["request_digest"],
        "prompt_version": [prompt_version] * rows,
        "modality": [modality] * rows if isinstance(modality, str) else modality,
        "response": [None] * rows,
        "status": [None] * rows,
        "reason": [None] * rows,
        "input_tokens": [0] * rows,
        "output_tokens": [0] * rows,
        "cost_usd": [0.0] * rows,
    } | columns
    for name in ("response", "reason"):
        values[name] = [None if text is None else text.encode("utf-8", "replace").decode() for text in values[name]]
    return pa.table({field.name: values[field.name] for field in RAW_SCHEMA}, schema=RAW_SCHEMA)
