"""The store of what users did and were shown: two logs that only grow, in a folder on disk or s3://, and how to read them.

Each log has segments and parts. A segment is JSON lines, written by one replica and complete up to its last newline. A part is
Parquet and replaces closed segments of one hour; its metadata name them. While parts are made, a row may stand in both, so
every reader keeps one row of each key: the one that was received first.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.json as pajson
import pyarrow.parquet as pq

from digr.data.database import load_rows, open_database, stream_rows
from digr.files import filesystem_of, list_parts

MARKER = "_store.json"
"""File that tells a store from other folders."""
BLOCK_BYTES = 1 << 22
MEMORY_GIB = 1.0
"""Memory for sorts; larger ones spill to disk."""
_TIME = pa.timestamp("ms", "UTC")
EVENTS = pa.schema(
    {
        "event_id": pa.string(),
        "type": pa.string(),
        "user_id": pa.string(),
        "item_id": pa.string(),
        "time": _TIME,
        "client_time": _TIME,
        "received": _TIME,
        "rating": pa.float64(),
        "recommendation_id": pa.string(),
    }
)
"""`time` is the time that counts: the client's, unless that is missing, in the future or too old, then that of `received`."""
_LISTED = pa.struct(
    {"item_id": pa.string(), "position": pa.int32(), "sources": pa.list_(pa.string()), "interest": pa.string()},
)
IMPRESSIONS = pa.schema(
    {
        "recommendation_id": pa.string(),
        "received": _TIME,
        "user_id": pa.string(),
        "history": pa.string(),
        "model": pa.string(),
        "experiment": pa.string(),
        "arm": pa.string(),
        "shadow": pa.bool_(),
        "list_source": pa.string(),
        "items": pa.list_(_LISTED),
    }
)
"""One list: `history` is a digest of the history's items; `shadow` lists were not shown; positions count from 1."""


class Log(NamedTuple):
    """One log of a store."""

    uri: str
    """Its folder, local or s3://."""
    schema: pa.Schema
    key: tuple[str, ...]
    """Columns that together name a row."""

    @property
    def segments(self) -> str:
        """Address of the segments."""
        return f"{self.uri}/segments"

    @property
    def parts(self) -> str:
        """Address of the parts."""
        return f"{self.uri}/parts"


class Segment(NamedTuple):
    """A file of JSON lines."""

    path: str
    """On the store's file system."""
    size: int
    """Bytes."""

    @property
    def folder(self) -> str:
        """Name of its folder, which begins with its hour."""
        return self.path.rsplit("/", 2)[-2]

    @property
    def name(self) -> str:
        """Its path below the segments, which no other segment of the log ever has."""
        return "/".join(self.path.rsplit("/", 2)[-2:])


def events_log(store: str) -> Log:
    """Return the log of events of a store."""
    return Log(f"{store}/events", EVENTS, ("event_id",))


def impressions_log(store: str) -> Log:
    """Return the log of lists of a store."""
    return Log(f"{store}/impressions", IMPRESSIONS, ("recommendation_id", "shadow"))


def hour_of(seconds: float) -> str:
    """Return the name of the hour of a Unix time, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H")


def create_store(store: str) -> None:
    """Mark a folder as a store; an existing one stays as it is."""
    fs, path = filesystem_of(store)
    fs.create_dir(path, recursive=True)
    if not fs.get_file_info(f"{path}/{MARKER}").is_file:
        with fs.open_output_stream(f"{path}/{MARKER}") as stream:
            stream.write(json.dumps({"kind": "digr events", "version": 1}).encode())


def is_store(uri: str) -> bool:
    """Whether a folder is a store of events."""
    fs, path = filesystem_of(uri)
    return fs.get_file_info(f"{path}/{MARKER}").is_file


def list_segments(log: Log, folders: Collection[str] | None = None) -> list[Segment]:
    """Return the segments of a log, those of some folders or of all, in the order of their names."""
    fs, path = filesystem_of(log.segments)
    places = [path] if folders is None else [f"{path}/{folder}" for folder in folders]
    found = [fs.get_file_info(pafs.FileSelector(place, recursive=True, allow_not_found=True)) for place in places]
    files = [entry for entries in found for entry in entries if entry.is_file and entry.path.endswith(".jsonl")]
    return sorted(Segment(entry.path, entry.size) for entry in files)


def whole_lines(fs: pafs.FileSystem, path: str, offset: int = 0) -> Iterator[tuple[bytes, int]]:
    """Read a segment in blocks of whole lines, each with the offset behind it; an unfinished last line is left."""
    with fs.open_input_file(path) as file:
        file.seek(offset)
        rest = b""
        while data := file.read(BLOCK_BYTES):
            lines, newline, rest = (rest + data).rpartition(b"\n")
            if newline:
                offset += len(lines) + 1
                yield lines + newline, offset


def read_lines(schema: pa.Schema, lines: bytes) -> tuple[pa.Table, list[bytes]]:
    """Return the rows of JSON lines, and the lines that are none."""
    try:
        return _parse(schema, lines), []
    except pa.ArrowInvalid:
        rows, bad = [], []
        for line in lines.splitlines():
            try:
                rows.append(_parse(schema, line))
            except pa.ArrowInvalid:
                bad.append(line)
        return pa.concat_tables([schema.empty_table(), *rows]), bad


def _parse(schema: pa.Schema, lines: bytes) -> pa.Table:
    numbers = pa.schema([pa.field(field.name, pa.int64() if field.type == _TIME else field.type) for field in schema])
    options = pajson.ParseOptions(explicit_schema=numbers, unexpected_field_behavior="ignore")
    if not lines.strip():
        return schema.empty_table()
    reading = pajson.ReadOptions(use_threads=False, block_size=max(len(lines), 1))
    return pajson.read_json(pa.BufferReader(lines), read_options=reading, parse_options=options).cast(schema)


def iter_log(log: Log, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Read a whole log, segments before parts; so no row is missed, but a row may come twice while parts are made."""
    fs, _ = filesystem_of(log.uri)
    for segment in list_segments(log):
        try:
            for lines, _ in whole_lines(fs, segment.path):
                yield from read_lines(log.schema, lines)[0].select(columns).to_batches()
        except FileNotFoundError:  # it is in a part by now, and parts are listed later
            continue
    for part in list_parts(log.parts):
        with pq.ParquetFile(part, filesystem=fs) as file:
            for batch in file.iter_batches(columns=list(columns)):
                yield pa.record_batch([batch.column(name) for name in columns], names=list(columns))


def load_log(connection: duckdb.DuckDBPyConnection, log: Log, name: str, columns: Sequence[str]) -> None:
    """Load columns of a log into a table of a database, one row of each key.

    Args:
        connection: the database.
        log: its columns must include the key and `received`.
        name: of the new table.
        columns: which columns.
    """
    schema = pa.schema([log.schema.field(column) for column in columns])
    load_rows(connection, f"{name}_raw", schema, iter_log(log, columns))
    key = ", ".join(log.key)
    rest = ", ".join(f"{column} NULLS FIRST" for column in columns if column in log.schema.names and column != "items")
    first = f"row_number() OVER (PARTITION BY {key} ORDER BY received, {rest}) = 1"
    connection.execute(f"CREATE TABLE {name} AS SELECT * FROM {name}_raw QUALIFY {first}")
    connection.execute(f"DROP TABLE {name}_raw")


def write_events(store: str, target: Path) -> int:
    """Write the events of a store into a Parquet file, each once and in the order of their times; return how many.

    Raises:
        ValueError: there are none.
    """
    rows = 0
    with open_database(MEMORY_GIB, str(target.parent)) as connection, pq.ParquetWriter(target, EVENTS) as writer:
        load_log(connection, events_log(store), "events", EVENTS.names)
        for batch in stream_rows(connection, "SELECT * FROM events ORDER BY time, received, event_id"):
            writer.write_table(pa.Table.from_batches([batch]).cast(EVENTS))
            rows += len(batch)
    if not rows:
        raise ValueError(f"{store}: the store of events is empty; post some to the endpoint first (POST /v1/events)")
    return rows
