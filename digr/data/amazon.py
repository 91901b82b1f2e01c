"""Read a folder in the common form: items.parquet, interactions.parquet and splits/{train,valid,test}.parquet.

Amazon review sets come this way, and any other catalogue can. Whatever is wrong with the files is said before anything
is built from them.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from digr.artifacts import filesystem_of
from digr.tables import SPLITS, check_table, conform

ITEM_COLUMNS = ("item_id", "title", "description", "brand", "categories", "price", "currency", "image_url", "image_file")
FIRST_MILLISECOND = 100_000_000_000
"""Times from here on are milliseconds (March 1973), below they are seconds (until the year 5138)."""
SPLIT_TYPES = {"user_id": pa.string(), "history": pa.list_(pa.string()), "target": pa.string()}


class SourceTables(NamedTuple):
    """Checked tables of a source."""

    items: pa.Table
    interactions: pa.Table
    """In the order of the source's rows."""
    splits: dict[str, pa.Table]
    """By name; empty without official ones."""
    rejected: dict[str, int]
    """Rows that were left out, by reason."""


def source_files(folder: str, official: bool) -> dict[str, str]:
    """Return the addresses of a folder's files by name, all of which exist.

    Args:
        folder: local folder or s3:// address.
        official: whether splits/ is needed.

    Raises:
        ValueError: the folder or a file is missing; the message lists what was expected.
    """
    names = ["items.parquet", "interactions.parquet"] + [f"splits/{split}.parquet" for split in SPLITS if official]
    if not folder:
        raise ValueError(f'data.path is empty; data.source = "parquet" needs a folder with {", ".join(names)}')
    fs, path = filesystem_of(folder)
    if fs.get_file_info(path).type == pafs.FileType.NotFound:
        raise ValueError(f"data.path: folder {folder} does not exist; expected there: {', '.join(names)}")
    missing = [name for name in names if not fs.get_file_info(f"{path}/{name}").is_file]
    if missing:
        raise ValueError(f"data.path: {folder} lacks {', '.join(missing)}; expected there: {', '.join(names)}")
    return {name: f"{folder.rstrip('/')}/{name}" for name in names}


def read_folder(folder: str, official: bool) -> SourceTables:
    """Read and check a folder in the common form.

    Empty strings become nulls, `price` stands as it is beside its `currency`, whole-number times are taken as seconds or
    milliseconds by their size, and an `image_file` is resolved against the folder. Other columns are ignored.
    An item without a title is left out and counted if nobody interacted with it, else it is an error.

    Args:
        folder: local folder or s3:// address.
        official: whether to read splits/ too.

    Raises:
        ValueError: a file, column or type is wrong, an item or position occurs twice, a row names an unknown item, or a
            split is empty.
    """
    files = source_files(folder, official)
    interactions = _interactions(files["interactions.parquet"])
    items, untitled = _items(files["items.parquet"], folder)
    splits = {split: _split(files[f"splits/{split}.parquet"]) for split in SPLITS} if official else {}
    used = {f"{files['interactions.parquet']}, item_id": interactions["item_id"]}
    for split, table in splits.items():
        used[f"{files[f'splits/{split}.parquet']}, history"] = pc.list_flatten(table["history"])
        used[f"{files[f'splits/{split}.parquet']}, target"] = table["target"]
    for where, column in used.items():
        _check_known(column, items["item_id"], untitled, where)
    return SourceTables(
        items, interactions, splits, {"item without title or interaction": len(untitled)} if len(untitled) else {}
    )


def _read(uri: str, columns: tuple[str, ...], required: tuple[str, ...]) -> pa.Table:
    fs, path = filesystem_of(uri)
    try:
        found = pq.read_schema(path, filesystem=fs).names
    except pa.ArrowInvalid as error:
        raise ValueError(f"{uri}: not a Parquet file: {error}") from error
    missing = [column for column in required if column not in found]
    if missing:
        raise ValueError(f"{uri}: lacks column {', '.join(missing)}; found {', '.join(found)}")
    return pq.read_table(path, filesystem=fs, columns=[column for column in columns if column in found])


def _items(uri: str, folder: str) -> tuple[pa.Table, pa.Array]:
    """Return the items by id, and the ids of those without a title."""
    raw = _read(uri, ITEM_COLUMNS, ("item_id", "title"))
    for column in ("title", "description", "brand", "currency", "image_url", "image_file"):
        if column in raw.column_names:
            raw = raw.set_column(raw.column_names.index(column), column, _nonempty(raw[column], column, uri))
    columns = {name: raw[name] for name in ("item_id", "title", "description", "brand", "currency") if name in raw.column_names}
    if "categories" in raw.column_names:
        columns["categories"] = _categories(raw["categories"], uri)
    if "price" in raw.column_names:
        price = raw["price"]
        nan = pa.types.is_floating(price.type)
        columns["price"] = pc.if_else(pc.is_nan(price), None, price) if nan else price
    columns["image_uri"] = _image_uris(raw, folder)
    untitled = pc.is_null(raw["title"])
    table = pa.table(columns).filter(pc.invert(untitled))
    items = check_table("items", table, uri)
    return items.take(pc.sort_indices(items["item_id"])), pa.array(raw["item_id"].filter(untitled).to_pylist(), pa.string())


def _nonempty(column: pa.ChunkedArray, name: str, uri: str) -> pa.ChunkedArray:
    """Return a text column with null for what is only white space."""
    if pa.types.is_null(column.type):
        return column.cast(pa.string())
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise ValueError(f"{uri}: column {name}: expected string, found {column.type}")
    blank = pc.equal(pc.utf8_trim_whitespace(column), "")
    return pc.if_else(pc.fill_null(blank, True), None, column)


def _categories(column: pa.ChunkedArray, uri: str) -> pa.ChunkedArray:
    if pa.types.is_null(column.type):
        return column
    if not pa.types.is_list(column.type):
        raise ValueError(f"{uri}: column categories: expected list<string>, found {column.type}")
    if pc.list_flatten(column).null_count:
        raise ValueError(
            f"{uri}: column categories: {pc.list_flatten(column).null_count} empty values inside lists, none allowed"
        )
    return pc.if_else(pc.equal(pc.fill_null(pc.list_value_length(column), 0), 0), None, column)


def _image_uris(raw: pa.Table, folder: str) -> pa.ChunkedArray:
    """Prefer a file of the folder to an address on the web; both absent gives null."""
    nulls = pa.chunked_array([pa.nulls(len(raw), pa.string())])
    urls = raw["image_url"] if "image_url" in raw.column_names else nulls
    if "image_file" not in raw.column_names:
        return urls
    files = raw["image_file"]
    base = folder.rstrip("/") if "://" in folder else filesystem_of(folder)[1]
    full = pc.binary_join_element_wise(pa.scalar(base, files.type), files, "/")
    anchored = pc.or_(pc.starts_with(files, "/"), pc.match_substring(files, "://"))
    return pc.coalesce(pc.if_else(anchored, files, full), urls)


def _interactions(uri: str) -> pa.Table:
    raw = _read(uri, ("user_id", "position", "item_id", "timestamp", "rating"), ("user_id", "position", "item_id"))
    if "timestamp" in raw.column_names:
        raw = raw.set_column(raw.column_names.index("timestamp"), "timestamp", _times(raw["timestamp"], uri))
    table = check_table("interactions", raw, uri)
    if not len(table):
        raise ValueError(f"{uri}: no interactions in it")
    return table


def _times(column: pa.ChunkedArray, uri: str) -> pa.ChunkedArray:
    """Return whole seconds or milliseconds since 1970 as milliseconds in UTC; timestamps stay."""
    if not pa.types.is_integer(column.type):
        return column
    column = column.cast(pa.int64())
    least, most = (value.as_py() or 0 for value in pc.min_max(column).values())
    if most >= 1000 * FIRST_MILLISECOND or least < 0:
        raise ValueError(
            f"{uri}: column timestamp: expected seconds or milliseconds since 1970, found {least if least < 0 else most}"
        )
    if most >= FIRST_MILLISECOND > least and column.null_count < len(column):
        raise ValueError(f"{uri}: column timestamp: mixes seconds and milliseconds ({least} and {most})")
    scale = 1 if most >= FIRST_MILLISECOND else 1000
    return pc.multiply(column, scale).cast(pa.timestamp("ms", tz="UTC"))


def _split(uri: str) -> pa.Table:
    raw = _read(uri, tuple(SPLIT_TYPES), tuple(SPLIT_TYPES))
    history = raw["history"].type
    listed = pa.types.is_list(history) or pa.types.is_large_list(history)
    if not listed or not (pa.types.is_string(history.value_type) or pa.types.is_large_string(history.value_type)):
        raise ValueError(f"{uri}: column history: expected list<string>, found {history}")
    named = conform("interactions", _as_interactions(raw), uri)
    if not len(raw):
        raise ValueError(f"{uri}: the split is empty; every split needs at least one row")
    if raw["history"].null_count or pc.list_flatten(raw["history"]).null_count:
        raise ValueError(f"{uri}: column history: empty values, none allowed")
    return pa.table(
        {"user_id": named["user_id"], "history": raw["history"].cast(SPLIT_TYPES["history"]), "target": named["item_id"]}
    )


def _as_interactions(raw: pa.Table) -> pa.Table:
    """Let the checks of `interactions` see the ids of a split."""
    return pa.table({"user_id": raw["user_id"], "item_id": raw["target"], "position": np.zeros(len(raw), np.int32)})


def _check_known(column: pa.ChunkedArray, known: pa.ChunkedArray, untitled: pa.Array, where: str) -> None:
    distinct = pc.unique(column)
    strange = distinct.filter(pc.invert(pc.is_in(distinct, value_set=pc.unique(known))))
    if not len(strange):
        return
    nameless = strange.filter(pc.is_in(strange, value_set=untitled))
    if len(nameless):
        raise ValueError(f"{where}: {len(nameless)} items have an empty title in items.parquet (first: {nameless[0].as_py()!r})")
    raise ValueError(f"{where}: {len(strange)} items are not in items.parquet (first: {strange[0].as_py()!r})")
