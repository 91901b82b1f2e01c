"""Common partitions: all tables about items are split by the same ranges of item_id, and all tables about users likewise.

A stage reads part k of its inputs and writes part k of its output, without look-ups or shuffles, in the memory of one part.
The manifests of `items` and `histories` define the parts; tables about both items and users (`interests`) have a folder for
each.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int

from digr import artifacts
from digr.artifacts import Store
from digr.tables import Owner, table_spec

STARTS = "part_starts"
"""Fact in the manifest of a partitioned table: the first id of each part, "" for the first part."""
SOURCES: dict[Owner, str] = {"item": "items", "user": "histories"}


class Part(NamedTuple):
    """Part `number`, from 0, of all tables about items or about users."""

    owner: Owner
    number: int


def range_starts(ids: pa.Array | pa.ChunkedArray, ids_per_part: int) -> list[str]:
    """Return the first id of each part, "" for the first; ids may repeat and be in any order."""
    distinct = pc.unique(ids)
    distinct = distinct.take(pc.sort_indices(distinct))
    return ["", *distinct.take(pa.array(range(ids_per_part, len(distinct), ids_per_part), pa.int64())).to_pylist()]


def part_starts(store: Store, name: str) -> list[str]:
    """Return the first id of each part of a table; a table without this fact in its manifest has one part.

    Raises:
        ValueError: the table does not exist.
    """
    return list(artifacts.require(store, name).facts.get(STARTS, [""]))


def parts_of(store: Store, owner: Owner) -> list[Part]:
    """Return all parts of a run's items or users, in the order of their ids."""
    return [Part(owner, number) for number in range(len(part_starts(store, SOURCES[owner])))]


def part_numbers(starts: Sequence[str], ids: pa.Array | pa.ChunkedArray) -> Int[np.ndarray, " B"]:
    """Return the number of the part in whose range each id is."""
    ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    return np.asarray(pc.search_sorted(pa.array(starts, pa.string()), ids, side="right")).astype(np.int64) - 1


def part_uri(store: Store, name: str, part: Part) -> str:
    """Return the address of a table's part."""
    folder = f"/{part.owner}" if table_spec(name).about == "both" else ""
    return f"{store.uri(name)}{folder}/{artifacts.part_name(part.number)}"


def read_part(store: Store, name: str, part: Part, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a whole part, or some of its columns."""
    with _opened(store, name, part) as file:
        return file.read(columns=list(columns) if columns else None)


def iter_part(store: Store, name: str, part: Part, batch_rows: int, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Stream a part in tables of `batch_rows` rows; the last one may be shorter.

    Raises:
        ValueError: the part does not exist.
    """
    with _opened(store, name, part) as file:
        held: list[pa.RecordBatch] = []
        missing = batch_rows
        for batch in file.iter_batches(batch_rows, columns=list(columns) if columns else None):
            while len(batch) >= missing:
                yield pa.Table.from_batches([*held, batch.slice(0, missing)])
                batch, held, missing = batch.slice(missing), [], batch_rows
            if len(batch):
                held, missing = [*held, batch], missing - len(batch)
        if held:
            yield pa.Table.from_batches(held)


def iter_users(store: Store, name: str, part: Part, batch_rows: int, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Stream a part of a table with many rows per user, all rows of a user in one table, about `batch_rows` at a time."""
    held: pa.Table | None = None
    for table in iter_part(store, name, part, batch_rows, columns):
        rows = table if held is None else pa.concat_tables([held, table])
        cut = pc.index(rows["user_id"], rows["user_id"][-1]).as_py()
        if cut:
            yield rows.slice(0, cut)
        held = rows.slice(cut)
    if held is not None:
        yield held


def iter_aligned(store: Store, names: Sequence[str], part: Part, batch_rows: int) -> Iterator[tuple[pa.Table, ...]]:
    """Stream the same part of several tables with one row per owner, with the same owners in each batch.

    Raises:
        ValueError: a part does not exist, or its owners differ from the first table's.
    """
    streams = [iter_part(store, name, part, batch_rows) for name in names]
    while True:
        found = [next(stream, None) for stream in streams]
        tables = [table for table in found if table is not None]
        if not tables:
            return
        ids = [table[table_spec(name).range_column] for name, table in zip(names, found, strict=True) if table is not None]
        if len(tables) < len(names) or any(not other.equals(ids[0]) for other in ids):
            others = " and ".join(part_uri(store, name, part) for name in names[1:])
            raise ValueError(
                f"{others}: not the same owners as in {part_uri(store, names[0], part)}; an input changed: rebuild the later "
                f"of them with --force"
            )
        yield tuple(tables)


def _opened(store: Store, name: str, part: Part) -> pq.ParquetFile:
    uri = part_uri(store, name, part)
    fs, path = artifacts.filesystem_of(uri)
    if not fs.get_file_info(path).is_file:
        raise ValueError(f"{uri}: no such part of {name}; run `{artifacts.command_of(name)} --force` to rebuild it")
    return pq.ParquetFile(path, filesystem=fs, pre_buffer=True)
