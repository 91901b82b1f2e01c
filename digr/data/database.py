"""A DuckDB database in a scratch folder, for what sorts, joins and counts more rows than fit into memory.

One process of DuckDB spills to disk and uses all cores: it prepares a hundred million interactions on two of them, without a
cluster and without a shuffle between processes.
"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

BATCH_ROWS = 65_536
"""Rows that go in or out at a time."""


@contextmanager
def open_database(
    memory_gib: float, scratch: str | None = None, *, keep_order: bool = False
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an empty database that is gone when the block ends.

    Args:
        memory_gib: memory of its tables, sorts and joins, GiB; what needs more goes to disk.
        scratch: folder for its files; None keeps tables in memory as long as they fit, then in the system's temporary folder.
        keep_order: whether rows come out of files in their order; costs memory, and is not needed where rows have numbers.
    """
    if scratch:
        Path(scratch).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="digr-", dir=scratch) as folder:
        settings: dict[str, Any] = {"memory_limit": f"{int(memory_gib * 1024)}MiB", "temp_directory": f"{folder}/spilled"}
        settings["preserve_insertion_order"] = keep_order
        with duckdb.connect(f"{folder}/rows.duckdb" if scratch else ":memory:", config=settings) as connection:
            yield connection


def load_rows(
    connection: duckdb.DuckDBPyConnection, name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], where: str = "true"
) -> None:
    """Write batches, or their rows that meet a condition, into a new table; an error of `batches` comes out as it is."""
    failures: list[BaseException] = []

    def watched() -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except BaseException as error:
            failures.append(error)
            raise

    connection.register("incoming", pa.RecordBatchReader.from_batches(schema, watched()))
    try:
        connection.execute(f"CREATE TABLE {name} AS SELECT * FROM incoming WHERE {where}")
    except duckdb.Error:
        if failures:
            raise failures[0] from None
        raise
    finally:
        connection.unregister("incoming")


def rows_of(connection: duckdb.DuckDBPyConnection, query: str) -> list[tuple[Any, ...]]:
    """Return the few rows of a query."""
    return connection.execute(query).fetchall()


def count_of(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    """Return the one whole number that a query gives; null is 0."""
    return int(rows_of(connection, query)[0][0] or 0)


def stream_rows(connection: duckdb.DuckDBPyConnection, query: str, batch_rows: int = BATCH_ROWS) -> pa.RecordBatchReader:
    """Return the rows of a query batch by batch, over a cursor of its own."""
    return connection.cursor().sql(query).to_arrow_reader(batch_rows)
