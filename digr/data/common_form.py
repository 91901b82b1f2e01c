"""Read a folder in the common form: items.parquet, interactions.parquet and splits/{train,valid,test}.parquet.

Each may be a file or a folder of parts, as Spark writes one. `jobs.import_data` makes such a folder from files of other forms.
Rows are read batch by batch; every text, list or number type of Arrow will do. Errors name the file's address.
"""

import difflib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from digr.data.database import BATCH_ROWS
from digr.data.texts import plain_texts
from digr.files import filesystem_of, list_parts
from digr.tables import SPLITS, conform

ROW = pa.field("row", pa.int64())
"""Place of a row in its file, or in all parts of a folder in the order of their names."""
STRINGS = pa.list_(pa.string())
TEXT_COLUMNS = ("title", "description", "brand")
ITEM_ROWS = pa.schema(
    [
        ROW,
        *((name, pa.string()) for name in ("item_id", *TEXT_COLUMNS)),
        ("categories", STRINGS),
        ("price", pa.float64()),
        ("currency", pa.string()),
        ("image_uri", pa.string()),
    ]
)
INTERACTION_ROWS = pa.schema(
    [
        ROW,
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("position", pa.int64()),
        ("time", pa.int64()),
        ("rating", pa.float64()),
    ]
)
SPLIT_ROWS = pa.schema([ROW, ("user_id", pa.string()), ("history", STRINGS), ("target", pa.string())])
KNOWN_COLUMNS = {
    "items": ("item_id", *TEXT_COLUMNS, "categories", "price", "currency", "image_url", "image_file"),
    "interactions": ("user_id", "item_id", "position", "timestamp", "rating"),
    "splits": ("user_id", "history", "target"),
}
BATCH_BYTES = 1 << 26
"""Most bytes of a batch of rows, so that long texts stay far from the 2 GiB of an Arrow column."""
REQUIRED_COLUMNS = {"items": ("item_id", "title"), "interactions": ("user_id", "item_id"), "splits": KNOWN_COLUMNS["splits"]}
MISSING_WORDS = pa.array(["nan", "NaN", "None", "null", "NULL", "<NA>", "N/A"])
"""Texts that programs write for a missing value."""


class Source(NamedTuple):
    """Rows of a catalogue and its interactions, in batches of ITEM_ROWS, INTERACTION_ROWS and SPLIT_ROWS."""

    items: Iterable[pa.RecordBatch]
    interactions: Iterable[pa.RecordBatch]
    splits: Mapping[str, Iterable[pa.RecordBatch]]
    """Official splits by name; empty if there are none."""
    places: Mapping[str, str]
    """Address of each table, for messages: items, interactions, train, valid, test."""
    has_position: bool
    """Whether the interactions have a position, their order within a user."""
    in_milliseconds: bool
    """Whether times are milliseconds since 1970; otherwise their unit follows from their size."""
    notes: Sequence[str] = ()
    """Messages for the user, known before the rows are read."""
    mended: Mapping[str, int] = MappingProxyType({})
    """Values that were changed while the items were read (reason -> count)."""


def source_files(folder: str, official: bool) -> dict[str, str]:
    """Return the addresses of a folder's tables by file name, and check that all exist.

    Args:
        folder: local folder or s3:// address.
        official: whether splits/ is needed.

    Raises:
        ValueError: the folder or a table is missing; the message lists what was expected.
    """
    names = ["items.parquet", "interactions.parquet"] + [f"splits/{split}.parquet" for split in SPLITS if official]
    if not folder:
        raise ValueError(f'data.path is empty; data.source = "parquet" needs a folder with {", ".join(names)}')
    with _readable(folder):
        fs, path = filesystem_of(folder)
        if fs.get_file_info(path).type == pafs.FileType.NotFound:
            relative = "://" not in folder and not Path(folder).is_absolute()
            hint = f". A relative path begins at the working directory, which is {Path.cwd()}" if relative else ""
            raise ValueError(f"data.path: folder {folder} does not exist; expected there: {', '.join(names)}{hint}")
        missing = [name for name in names if not list_parts(f"{folder.rstrip('/')}/{name}")]
    if missing:
        raise ValueError(
            f"data.path: {folder} lacks {', '.join(missing)}; expected there: {', '.join(names)}. "
            f"`digr data import FILES --out FOLDER` makes such a folder from CSV, JSON and other files"
        )
    return {name: f"{folder.rstrip('/')}/{name}" for name in names}


def has_official_splits(folder: str) -> bool:
    """Whether a folder holds splits/ with all three splits."""
    return all(list_parts(f"{folder.rstrip('/')}/splits/{split}.parquet") for split in SPLITS)


def count_rows(uri: str) -> int:
    """Return the number of rows of a table, read from the footers of its files."""
    fs, _ = filesystem_of(uri)
    return sum(pq.read_metadata(part, filesystem=fs).num_rows for part in list_parts(uri))


def open_folder(folder: str, official: bool, strip_html: bool = True) -> Source:
    """Open a folder in the common form: check its columns now, and its rows as they are read.

    Empty texts, texts that stand for a missing value ("nan") and prices that are negative or not finite become null. An
    `image_file` is relative to the folder.

    Args:
        folder: local folder or s3:// address.
        official: whether to read splits/ too.
        strip_html: whether texts with HTML are replaced by the text that a browser would show.

    Raises:
        ValueError: the folder, a table or a column is missing, or times are of two kinds; later, while rows are read, a value
            has the wrong type or is missing where it is required.
    """
    files = source_files(folder, official)
    items, interactions = files["items.parquet"], files["interactions.parquet"]
    splits = {split: files[f"splits/{split}.parquet"] for split in SPLITS if official}
    notes = [*_check_columns(items, "items"), *_check_columns(interactions, "interactions")]
    for uri in splits.values():
        notes += _check_columns(uri, "splits")
    mended = Counter[str]()
    read_item = partial(_item_rows, folder=folder, mended=mended, strip_html=strip_html)
    return Source(
        items=_convert(items, "items", read_item),
        interactions=_convert(interactions, "interactions", _interaction_rows),
        splits={split: _convert(uri, "splits", _split_rows) for split, uri in splits.items()},
        places={"items": items, "interactions": interactions, **splits},
        has_position="position" in _found_columns(interactions),
        in_milliseconds=_in_milliseconds(interactions),
        notes=notes,
        mended=mended,
    )


def table_source(items: pa.Table, interactions: pa.Table, splits: Mapping[str, pa.Table] = {}) -> Source:
    """Return tables in the schemas of `items` and `interactions` (and official splits) as a source."""
    position, times = interactions["position"].cast(pa.int64()), interactions["timestamp"].cast(pa.int64())
    log = interactions.set_column(interactions.column_names.index("position"), "position", position)
    log = log.append_column("time", times)
    return Source(
        items=_numbered(items, ITEM_ROWS),
        interactions=_numbered(log, INTERACTION_ROWS),
        splits={name: _numbered(table, SPLIT_ROWS) for name, table in splits.items()},
        places={"items": "items", "interactions": "interactions"} | {name: f"splits/{name}.parquet" for name in splits},
        has_position=True,
        in_milliseconds=True,
    )


def _numbered(table: pa.Table, schema: pa.Schema) -> list[pa.RecordBatch]:
    row = pa.array(np.arange(len(table)))
    return pa.table([row, *(table[name] for name in schema.names[1:])], schema=schema).to_batches()


@contextmanager
def _readable(uri: str) -> Iterator[None]:
    """Turn Arrow's error for a broken file or an unreachable store into one line that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, ValueError) and not isinstance(error, pa.ArrowException):
            raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{uri}: cannot be read: {reason}") from error


def _schemas(uri: str) -> Iterator[tuple[str, pa.Schema]]:
    """Yield the schema of each part; a file that is not Parquet is an error."""
    fs, _ = filesystem_of(uri)
    for part in list_parts(uri):
        try:
            with _readable(part):
                yield part, pq.read_schema(part, filesystem=fs)
        except ValueError as error:
            if isinstance(error.__cause__, pa.ArrowInvalid):
                raise ValueError(f"{part}: not a Parquet file: {error.__cause__}") from error
            raise


def _found_columns(uri: str) -> list[str]:
    return list(dict.fromkeys(name for _, schema in _schemas(uri) for name in schema.names))


def _check_columns(uri: str, kind: str) -> list[str]:
    """Check that every part has the required columns; return a note on columns that nothing reads."""
    known, unread = KNOWN_COLUMNS[kind], dict[str, None]()
    for part, schema in _schemas(uri):
        missing = [column for column in REQUIRED_COLUMNS[kind] if column not in schema.names]
        if missing:
            raise ValueError(
                f"{part}: lacks column {', '.join(missing)}; found {', '.join(schema.names)}. "
                f"`digr data import` reads files with other names, see data.columns"
            )
        unread |= dict.fromkeys(name for name in schema.names if name not in known)
    if not unread:
        return []
    found = set(_found_columns(uri))
    words = []
    for name in unread:
        near = difflib.get_close_matches(name.lower(), [column for column in known if column not in found], n=1, cutoff=0.6)
        words.append(f"{name} (is it {near[0]}?)" if near else name)
    return [f"{uri}: columns that are not read: {', '.join(words)}"]


def _convert(uri: str, kind: str, convert: Callable[[pa.Table, int, str], pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Stream all parts through `convert(rows, number of the first row, address)`; a part may lack optional columns."""
    fs, _ = filesystem_of(uri)
    row = 0
    for part in list_parts(uri):
        with _readable(part), pq.ParquetFile(part, filesystem=fs, pre_buffer=False) as file:
            columns = [name for name in KNOWN_COLUMNS[kind] if name in file.schema_arrow.names]
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
            width = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1)
            for batch in file.iter_batches(max(1, min(BATCH_ROWS, int(BATCH_BYTES / max(width, 1)))), columns=columns):
                step = max(1, len(batch) * BATCH_BYTES // max(batch.nbytes, 1))  # texts that repeat are larger than in the file
                for start in range(0, len(batch), step):
                    piece = batch.slice(start, step)
                    yield convert(pa.Table.from_batches([piece]), row, part)
                    row += len(piece)


def _item_rows(raw: pa.Table, row: int, uri: str, *, folder: str, mended: Counter[str], strip_html: bool) -> pa.RecordBatch:
    texts = {name: _text(raw, name, uri) for name in (*TEXT_COLUMNS, "currency", "image_url", "image_file")}
    for name in TEXT_COLUMNS:
        texts[name] = _without_missing_words(texts[name], name, mended)
        if strip_html:
            texts[name], changed = plain_texts(texts[name])
            if changed:
                mended[f"{name} with markup"] += changed
    columns = {name: texts[name] for name in (*TEXT_COLUMNS, "currency")}
    columns["categories"] = _categories(raw, uri)
    columns["price"] = _prices(raw, uri, mended)
    columns["image_uri"] = _image_uris(texts["image_file"], texts["image_url"], folder)
    return _batch(columns | {"item_id": _ids(raw, "item_id", uri, "items")}, row, ITEM_ROWS)


def _interaction_rows(raw: pa.Table, row: int, uri: str) -> pa.RecordBatch:
    ids = {name: _ids(raw, name, uri, "interactions") for name in ("user_id", "item_id")}
    numbers = {name: raw[name] for name in ("position", "rating") if name in raw.column_names}
    numbers["position"] = numbers.get("position", pa.array(np.zeros(len(raw), np.int32)))
    checked = conform("interactions", pa.table(ids | numbers), uri)
    columns = {"position": checked["position"].cast(pa.int64()), "rating": checked["rating"], "time": _ticks(raw, uri)}
    return _batch(ids | columns, row, INTERACTION_ROWS)


def _split_rows(raw: pa.Table, row: int, uri: str) -> pa.RecordBatch:
    kind = raw["history"].type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not listed or not _is_text(kind.value_type):
        raise ValueError(f"{uri}: column history: expected list<string>, found {kind}")
    if raw["history"].null_count or pc.list_flatten(raw["history"]).null_count:
        raise ValueError(f"{uri}: column history: empty values, none allowed")
    columns = {name: _ids(raw, name, uri, "interactions", "item_id") for name in ("user_id", "target")}
    return _batch(columns | {"history": raw["history"].cast(STRINGS)}, row, SPLIT_ROWS)


def _batch(columns: Mapping[str, pa.ChunkedArray | pa.Array], row: int, schema: pa.Schema) -> pa.RecordBatch:
    num_rows = len(next(iter(columns.values())))
    whole = {"row": pa.array(np.arange(row, row + num_rows)), **columns}
    table = pa.table([whole[name] for name in schema.names], schema=schema)
    return table.combine_chunks().to_batches()[0] if num_rows else pa.RecordBatch.from_pylist([], schema)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _ids(raw: pa.Table, name: str, uri: str, table: str, column: str = "") -> pa.ChunkedArray:
    """Return ids, none of which is missing, empty, or begins or ends with white space."""
    found = raw[name]
    if not _is_text(found.type):
        raise ValueError(
            f"{uri}: table {table}, column {name}: expected string, found {found.type}; "
            f"`digr data import` turns ids of any type into text"
        )
    ids = found.cast(pa.string())
    empty = pc.sum(pc.equal(pc.fill_null(ids, ""), "")).as_py() or 0
    if empty:
        raise ValueError(f"{uri}: table {table}, column {name}: {empty} empty values, none allowed")
    padded = ids.filter(pc.not_equal(pc.utf8_trim_whitespace(ids), ids))
    if len(padded):
        raise ValueError(
            f"{uri}: table {table}, column {name}: {len(padded)} ids begin or end with white space (first: "
            f"{padded[0].as_py()!r}); `digr data import` removes it everywhere"
        )
    return ids


def _text(raw: pa.Table, name: str, uri: str) -> pa.ChunkedArray:
    """Return a text column; texts of white space alone become null."""
    if name not in raw.column_names or pa.types.is_null(raw[name].type):
        return pa.chunked_array([pa.nulls(len(raw), pa.string())])
    if not _is_text(raw[name].type):
        raise ValueError(f"{uri}: column {name}: expected string, found {raw[name].type}")
    column = raw[name].cast(pa.string())
    blank = pc.equal(pc.utf8_trim_whitespace(column), "")
    return pc.if_else(pc.fill_null(blank, True), None, column)


def _without_missing_words(column: pa.ChunkedArray, name: str, mended: Counter[str]) -> pa.ChunkedArray:
    missing = pc.is_in(column, value_set=MISSING_WORDS)
    if count := pc.sum(missing).as_py() or 0:
        mended[f"{name} that says it is missing"] += count
    return pc.if_else(missing, None, column)


def _categories(raw: pa.Table, uri: str) -> pa.ChunkedArray:
    if "categories" not in raw.column_names or pa.types.is_null(raw["categories"].type):
        return pa.chunked_array([pa.nulls(len(raw), STRINGS)])
    column = raw["categories"]
    listed = pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type)
    if not listed or not (_is_text(column.type.value_type) or pa.types.is_null(column.type.value_type)):
        raise ValueError(f"{uri}: column categories: expected list<string>, found {column.type}")
    column = column.cast(STRINGS)
    if count := pc.list_flatten(column).null_count:
        raise ValueError(f"{uri}: column categories: {count} empty values inside lists, none allowed")
    return pc.if_else(pc.equal(pc.fill_null(pc.list_value_length(column), 0), 0), None, column)


def _prices(raw: pa.Table, uri: str, mended: Counter[str]) -> pa.ChunkedArray:
    """Return prices; negative and infinite ones become null."""
    if "price" not in raw.column_names:
        return pa.chunked_array([pa.nulls(len(raw), pa.float64())])
    column = raw["price"]
    kinds = (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal, pa.types.is_null)
    if not any(test(column.type) for test in kinds):
        raise ValueError(f"{uri}: table items, column price: expected double, found {column.type}")
    price = column.cast(pa.float64())
    price = pc.if_else(pc.is_nan(price), None, price)
    wrong = pc.or_(pc.less(price, 0), pc.equal(pc.abs(price), math.inf))
    if count := pc.sum(wrong).as_py() or 0:
        mended["price below 0 or infinite"] += count
    return pc.if_else(wrong, None, price)


def _image_uris(files: pa.ChunkedArray, urls: pa.ChunkedArray, folder: str) -> pa.ChunkedArray:
    """Return the file of the folder, else the web address, else null."""
    base = folder.rstrip("/") if "://" in folder else filesystem_of(folder)[1]
    full = pc.binary_join_element_wise(pa.scalar(base), files, "/")
    anchored = pc.or_(pc.starts_with(files, "/"), pc.match_substring(files, "://"))
    return pc.coalesce(pc.if_else(anchored, files, full), urls)


def _in_milliseconds(uri: str) -> bool:
    """Whether the times of interactions are timestamps rather than whole numbers.

    Raises:
        ValueError: the parts differ.
    """
    kinds = {
        pa.types.is_timestamp(kind) or pa.types.is_date(kind)
        for _, schema in _schemas(uri)
        if "timestamp" in schema.names and not pa.types.is_null(kind := schema.field("timestamp").type)
    }
    if len(kinds) > 1:
        raise ValueError(f"{uri}: column timestamp: some parts hold timestamps and others numbers; write all of one kind")
    return kinds != {False}


def _ticks(raw: pa.Table, uri: str) -> pa.ChunkedArray:
    """Return times as whole numbers: timestamps in milliseconds, numbers unchanged."""
    if "timestamp" not in raw.column_names or pa.types.is_null(raw["timestamp"].type):
        return pa.chunked_array([pa.nulls(len(raw), pa.int64())])
    column = raw["timestamp"]
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64())
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
    raise ValueError(f"{uri}: table interactions, column timestamp: expected timestamp[ms, tz=UTC], found {column.type}")
