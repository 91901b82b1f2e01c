"""Read files as relations with DuckDB: every cell is a text or null; lists and structs are JSON.

Columns are called c0, c1, ... in SQL, so that no name from a file is ever part of a query.
"""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from digr.data.importing.converting import to_json_lines
from digr.data.importing.sniffing import Written, distinct_names

SAMPLE_ROWS = 1000
MAX_ROW = 1 << 25
"""Most bytes of one row or JSON object."""
MAX_COLUMNS = 2_000
BAD_RATE = 0.1
"""A file with more than this share of unreadable rows counts as broken."""
JSON_FORMATS = {"json array": "array", "json rows": "unstructured"}


class Table(NamedTuple):
    """Files of the same shape, read as one."""

    files: tuple[Written, ...]
    columns: tuple[str, ...]
    """Names in the files; column k is `c<k>` in the SQL."""
    sql: str
    """A query of all rows, in the order of the files."""
    rows: int
    bad: int
    """Rows that cannot be read, which `sql` leaves out."""
    first_bad: str
    sample: tuple[tuple[str | None, ...], ...]

    @property
    def name(self) -> str:
        """Path of the first file inside the given folder or archive; formats are recognised by it."""
        return self.files[0].given.name

    @property
    def address(self) -> str:
        """The table's name in messages."""
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return self.files[0].given.address + more

    @property
    def encoding(self) -> str:
        """Encodings of the files, each once; empty for Parquet."""
        return ", ".join(dict.fromkeys(file.encoding for file in self.files if file.encoding))

    def pick(self, column: str) -> str:
        """Return the SQL of a column, given its name in the files; null if they lack it."""
        return f"c{self.columns.index(column)}" if column in self.columns else "CAST(NULL AS VARCHAR)"


def open_tables(con: duckdb.DuckDBPyConnection, files: Iterable[Written], scratch: Path) -> list[Table]:
    """Read the columns and number of rows of all files; the parts of a table become one table.

    Raises:
        ValueError: a file is broken, or too many of its rows are.
    """
    groups: dict[tuple, list[Written]] = {}
    for number, written in enumerate(files):
        link = scratch / f"in{number:06d}{'.parquet' if written.kind == 'parquet' else '.text'}"
        link.symlink_to(written.path)  # a safe name, because DuckDB reads *, ? and [ in names as patterns
        groups.setdefault(_shape(written), []).append(written._replace(path=link))
    return [_open(con, group, scratch, f"rejected{number}") for number, group in enumerate(groups.values())]


def with_inner_keys(con: duckdb.DuckDBPyConnection, table: Table, names: Iterable[str]) -> Table:
    """Return a table with further columns for names such as `reviewer.id`: a key inside the JSON that a column holds.

    A name that is itself a column, or whose key no row has, adds none. A number is a place in a list: `images.0.large`.
    """
    for name in names:
        outer = next((name[:at] for at in range(len(name), 0, -1) if name[at:][:1] == "." and name[:at] in table.columns), "")
        if name in table.columns or not outer:
            continue
        path = "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in name[len(outer) + 1 :].split("."))
        cell = table.pick(outer)
        inner = f"CASE WHEN json_valid({cell}) THEN json_extract_string({cell}, {_text(path)}) END"
        sql = f"SELECT *, {inner} AS c{len(table.columns)} FROM ({table.sql})"
        added = table._replace(columns=(*table.columns, name), sql=sql)
        if con.execute(f"SELECT 1 FROM ({sql}) WHERE {added.pick(name)} IS NOT NULL LIMIT 1").fetchall():
            table = added._replace(sample=tuple(con.execute(f"{sql} LIMIT {SAMPLE_ROWS}").fetchall()))
    return table


def _shape(written: Written) -> tuple:
    """Return the properties that all parts of a table share: folder, name without numbers, and how they are written."""
    folder, _, name = written.given.address.rpartition("/")
    stem = "part" if name.startswith("part-") else re.sub(r"\d+", "#", name)
    schema = (str(_read_schema(written)),) if written.kind == "parquet" else ()
    own = (written.given.address,) if written.kind in ("json object", "xml") else ()
    alike = (written.kind, written.delimiter, written.quote, written.escape, written.header, written.columns, written.skip)
    # numbers in a name may also distinguish two tables, such as u1.base and u2.base
    return (folder, stem if re.search(r"(^part-|\d{2,}|-of-)", name) else name, *alike, *schema, *own)


def _open(con: duckdb.DuckDBPyConnection, group: list[Written], scratch: Path, rejected: str) -> Table:
    first = group[0]
    address = first.given.address
    try:
        if first.kind == "parquet":
            return _open_parquet(con, group)
        if first.kind == "csv":
            return _open_csv(con, group, rejected)
        return _open_json(con, group, scratch)
    except duckdb.Error as error:
        raise ValueError(f"{address}: not read: {str(error).splitlines()[0]}") from error


def _finish(con: duckdb.DuckDBPyConnection, table: Table) -> Table:
    if table.bad > max(BAD_RATE * (table.rows + table.bad), 1 if table.rows else 0):
        found = f"; first: {table.first_bad}" if table.first_bad else ""
        raise ValueError(
            f"{table.address}: {table.bad} of {table.rows + table.bad} rows cannot be read, so the file is broken{found}"
        )
    if not table.columns:
        raise ValueError(f"{table.address}: no rows in it")
    return table._replace(sample=tuple(con.execute(f"{table.sql} LIMIT {SAMPLE_ROWS}").fetchall()))


def _check_width(written: Written, num_columns: int) -> None:
    if num_columns > MAX_COLUMNS:
        raise ValueError(
            f"{written.given.address}: has more than {MAX_COLUMNS:,} columns; expected a row for each interaction or item, and a "
            f"column for each property"
        )


def _paths(group: Iterable[Written]) -> str:
    return "[" + ", ".join(_text(str(written.path)) for written in group) + "]"


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _open_csv(con: duckdb.DuckDBPyConnection, group: list[Written], rejected: str) -> Table:
    first = group[0]
    _check_width(first, len(first.columns))
    columns = "{" + ", ".join(f"'c{number}': 'VARCHAR'" for number in range(len(first.columns))) + "}"
    options = (
        f"columns = {columns}, auto_detect = false, header = {str(first.header).lower()}, skip = {first.skip}, "
        f"delim = {_text(first.delimiter)}, quote = {_text(first.quote)}, escape = {_text(first.escape)}, "
        f"max_line_size = {MAX_ROW}, buffer_size = {2 * MAX_ROW}"
    )
    counting = (
        f"read_csv({_paths(group)}, {options}, store_rejects = true, rejects_table = '{rejected}', rejects_scan = '{rejected}s')"
    )
    [(rows,)] = con.execute(f"SELECT count(*) FROM (SELECT * FROM {counting})").fetchall()
    [(bad,)] = con.execute(f"SELECT count(*) FROM (SELECT DISTINCT file_id, line FROM {rejected})").fetchall()
    worst = con.execute(f"SELECT line, error_message FROM {rejected} ORDER BY file_id, line LIMIT 1").fetchall()
    text = f"line {worst[0][0]}: {worst[0][1]}" if worst else ""
    sql = f"SELECT * FROM read_csv({_paths(group)}, {options}, ignore_errors = true)"
    return _finish(con, Table(tuple(group), first.columns, sql, rows, bad, text, ()))


def _open_json(con: duckdb.DuckDBPyConnection, group: list[Written], scratch: Path) -> Table:
    kind, bad = group[0].kind, 0
    if kind in ("python dicts", "json object", "xml"):
        converted = []
        for written in group:
            path, unread = to_json_lines(written, scratch / f"{written.path.stem}.json")
            converted.append(written._replace(path=path))
            bad += unread
        group = converted
    form = JSON_FORMATS.get(kind, "newline_delimited")
    ignore = ", ignore_errors = true" if form == "newline_delimited" else ""
    objects = f"SELECT json FROM read_json_objects({_paths(group)}, format = '{form}', maximum_object_size = {MAX_ROW}{ignore})"
    [(rows, all_rows)] = con.execute(f"SELECT count(*) FILTER (json_type(json) = 'OBJECT'), count(*) FROM ({objects})").fetchall()
    named = f"SELECT unnest(json_keys(json)) AS k FROM ({objects}) WHERE json_type(json) = 'OBJECT'"
    counted = f"SELECT k, count(*) FROM ({named}) GROUP BY k ORDER BY 2 DESC, 1 LIMIT {MAX_COLUMNS + 1}"
    keys = [key for key, _ in con.execute(counted).fetchall()]
    _check_width(group[0], len(keys))
    pointers = ", ".join(_text("/" + key.replace("~", "~0").replace("/", "~1")) for key in keys)
    cells = f"SELECT json_extract_string(json, [{pointers}]) AS v FROM ({objects}) WHERE json_type(json) = 'OBJECT'"
    columns = ", ".join(f"v[{number + 1}] AS c{number}" for number in range(len(keys)))
    table = Table(tuple(group), tuple(keys), f"SELECT {columns} FROM ({cells})", rows, bad + all_rows - rows, "", ())
    return _finish(con, table)


def _read_schema(written: Written) -> pa.Schema:
    try:
        return pq.read_schema(written.path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{written.given.address}: not a readable Parquet file: {error}") from error


def _open_parquet(con: duckdb.DuckDBPyConnection, group: list[Written]) -> Table:
    columns = distinct_names(_read_schema(group[0]).names)
    _check_width(group[0], len(columns))
    source = f"SELECT * FROM read_parquet({_paths(group)})"
    types = [(str(row[0]), str(row[1])) for row in con.execute(f"DESCRIBE {source}").fetchall()]
    cells = ", ".join(f"{_cell(name, kind)} AS c{number}" for number, (name, kind) in enumerate(types))
    [(rows,)] = con.execute(f"SELECT count(*) FROM ({source})").fetchall()
    return _finish(con, Table(tuple(group), columns, f"SELECT {cells} FROM ({source})", rows, 0, "", ()))


def _cell(name: str, kind: str) -> str:
    quoted = '"' + name.replace('"', '""') + '"'
    if kind.endswith("]") or kind.startswith(("STRUCT", "MAP", "UNION")):
        return f"CAST(to_json({quoted}) AS VARCHAR)"
    if kind == "BLOB":
        return f"try_cast({quoted} AS VARCHAR)"
    if kind in ("DOUBLE", "FLOAT"):  # whole numbers lose their .0: pandas turns integer ids into floats if some are missing
        whole = f"{quoted} = trunc({quoted}) AND abs({quoted}) < 9e15"
        return f"CASE WHEN {whole} THEN CAST(CAST({quoted} AS BIGINT) AS VARCHAR) ELSE CAST({quoted} AS VARCHAR) END"
    return f"CAST({quoted} AS VARCHAR)"


def stem_of(name: str) -> str:
    """Return a file's name without its folders, in lower case."""
    return PurePosixPath(name).name.lower()
