"""A DuckDB database in a scratch folder, to sort, join and count more rows than fit into memory.

One DuckDB process uses all cores and spills to disk: it prepares a hundred million interactions on two cores, without a
cluster.
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

BATCH_ROWS = 65_536
"""Rows of a batch that is written to or read from the database."""


@contextmanager
def open_database(
    memory_gib: float, scratch: str | None = None, *, keep_order: bool = False, resume: bool = False
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an empty database, and delete it when the block ends; to resume, open the one of `scratch`, which stays.

    Args:
        memory_gib: memory for tables, sorts and joins, GiB; larger ones spill to disk.
        scratch: folder for its files; None keeps tables in memory while they fit, then in the system's temporary folder.
        keep_order: whether rows are read from files in order; costs memory, and rows with numbers do not need it.
        resume: whether the database outlives the block, and a kill; `scratch` is its folder.

    Raises:
        ValueError: the database of an earlier, killed job cannot be opened, or that job still runs.
    """
    if scratch:
        Path(scratch).mkdir(parents=True, exist_ok=True)
    lasting = scratch if resume else None
    with nullcontext(lasting) if lasting else tempfile.TemporaryDirectory(prefix="digr-", dir=scratch) as folder:
        shutil.rmtree(f"{folder}/spilled", ignore_errors=True)  # of a killed job
        settings: dict[str, Any] = {"memory_limit": f"{int(memory_gib * 1024)}MiB", "temp_directory": f"{folder}/spilled"}
        settings["preserve_insertion_order"] = keep_order
        try:
            connection = duckdb.connect(f"{folder}/rows.duckdb" if scratch else ":memory:", config=settings)
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{folder}/rows.duckdb: cannot be opened: {reason}; wait for the job that uses it, or run with --force"
            ) from error
        with connection:
            yield connection


def load_rows(
    connection: duckdb.DuckDBPyConnection, name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], where: str = "true"
) -> None:
    """Write the rows of batches that meet a condition into a new table; an error of `batches` is raised unchanged."""
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
    """Return the single whole number that a query returns; null counts as 0."""
    return int(rows_of(connection, query)[0][0] or 0)


def stream_rows(
    connection: duckdb.DuckDBPyConnection, query: str, batch_rows: int = BATCH_ROWS, values: Sequence[Any] = ()
) -> pa.RecordBatchReader:
    """Stream the rows of a query in batches, on a separate cursor; `values` are those of its question marks."""
    return connection.cursor().sql(query, params=list(values)).to_arrow_reader(batch_rows)
