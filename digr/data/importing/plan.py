"""Plan an import: how each file is read, which rows it gives, and how many are left out by reason.

A plan holds no data: each part is a query that DuckDB runs when its rows are counted, shown or written.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb

from digr.data.importing.counts import Plan, UsedTable, count_interactions, count_items, stripped
from digr.data.importing.fetching import Given, Report
from digr.data.importing.joining import join_orders
from digr.data.importing.rules import INTERACTION_COLUMNS, ITEM_COLUMNS, SPLIT_COLUMNS, Reading, match
from digr.data.importing.sniffing import Layout, Written, sniff
from digr.data.importing.tables import Table, open_tables, stem_of, with_inner_keys
from digr.data.importing.times import DATES
from digr.data.readers import amazon, digr_events, lcrec, merchant, minionerec, movielens, names, recbole, shopify

FORMATS = (
    "names", "amazon-2014", "amazon-2018", "amazon-2023", "movielens", "recbole", "minionerec", "lc-rec", "shopify", "merchant",
    "digr-events",
)  # fmt: skip
RULES = (*amazon.RULES, *movielens.RULES, *lcrec.RULES, *minionerec.RULES, *shopify.RULES, *merchant.RULES, *digr_events.RULES)
LAYOUTS = (*movielens.LAYOUTS, *lcrec.LAYOUTS, *minionerec.LAYOUTS, *recbole.LAYOUTS)
SHARED = {"minionerec": ("lc-rec", "recbole"), "lc-rec": ("recbole", "minionerec")}
"""Formats whose files also occur in data sets of other formats."""
ENDINGS = (
    ".csv",
    ".tsv",
    ".txt",
    ".dat",
    ".data",
    ".item",
    ".inter",
    ".json",
    ".jsonl",
    ".ndjson",
    ".parquet",
    ".xml",
    ".base",
    ".test",
)


def written_files(given: Sequence[Given], scratch: Path) -> tuple[list[Written], list[str]]:
    """Return how the files are written, and the addresses of files without a table."""
    found, unused = [], []
    for number, each in enumerate(given):
        name = stem_of(each.name)
        known = name.endswith(ENDINGS) or "." not in name or _layout(name)
        empty = "/" in each.name and not each.path.stat().st_size  # as Spark writes parts without rows
        if empty or not known or name.startswith(("readme", "license")):
            unused.append(each.address)
            continue
        written = sniff(each, _layout(name), names.is_usual, scratch / f"plain{number:06d}")
        if written:
            found.append(written)
        else:
            unused.append(each.address)
    return found, unused


def _layout(name: str) -> Layout | None:
    return next((layout for pattern, layout in LAYOUTS if re.fullmatch(pattern, name)), None)


def make_plan(
    con: duckdb.DuckDBPyConnection,
    given: Sequence[Given],
    scratch: Path,
    report: Report,
    *,
    format: str = "",
    columns: Mapping[str, Sequence[str]] = {},
    events: Sequence[str] = (),
    dates: str = "",
) -> Plan:
    """Read the columns of all files and decide how each is used.

    Args:
        con: the database that reads them.
        given: the files.
        scratch: folder for files that must be converted.
        report: called with each line of progress.
        format: one of FORMATS; empty guesses for each file.
        columns: chosen by the user: column of the common form -> columns of the files.
        events: values of the event column to keep; empty keeps all.
        dates: what dates such as 3/4/2021 begin with, one of `times.DATES`; empty decides by the dates themselves.

    Raises:
        ValueError: a file is broken, columns are missing or ambiguous, or there are no users or no titles.
    """
    if format not in ("", *FORMATS):
        raise ValueError(f"--format {format}: unknown; expected one of {', '.join(FORMATS)}")
    if dates not in ("", *DATES):
        raise ValueError(f"--dates {dates}: unknown; expected one of {', '.join(DATES)}")
    files, unused = written_files(given, scratch)
    report(f"{len(given)} files, counting rows")
    wanted = [name for theirs in columns.values() for name in theirs]
    tables = [with_inner_keys(con, table, wanted) for table in open_tables(con, files, scratch)]
    names.check_chosen(columns, tables)
    choices = [(table, _readings(table, format, columns)) for table in tables]
    notes = [f"{len(unused)} files hold no table and are not read, such as {unused[0]}"] if unused else []
    logged = any(reading.role in ("interactions", "splits") for _, readings in choices for reading in readings)
    if not logged and (joined := join_orders(con, tables)):
        choices.append((joined[0], names.readings(joined[0], columns)))
        notes.append(joined[1])
    used = _settle(con, choices, notes)
    plan = Plan(
        con,
        used,
        interactions=[_used_table(table, reading, INTERACTION_COLUMNS) for table, reading in _of(used, "interactions")],
        items=[_used_table(table, reading, ITEM_COLUMNS) for table, reading in _of(used, "items")],
        splits={},
        original_ids={},
        time_forms=[],
        dropped={},
        rows={},
        facts={},
        notes=notes,
    )
    for table, reading in _of(used, "splits"):
        if not reading.split:
            raise ValueError(f"{table.address}: a split, but neither its name nor its folder contains train, valid or test")
        plan.splits.setdefault(reading.split, []).append(_used_table(table, reading, SPLIT_COLUMNS))
    for table, reading in _of(used, "original_ids"):
        part = _used_table(table, reading._replace(columns={"id": ("id",), "original": ("original",)}), ("id", "original"))
        plan.original_ids.setdefault(reading.split, []).append(part)
    if not plan.items:
        plan.items.extend(_items_of_interactions(plan.interactions, notes))
    _check_complete(plan, unused)
    count_interactions(plan, events, dates)
    count_items(plan)
    return plan


def _readings(table: Table, format: str, columns: Mapping[str, Sequence[str]]) -> list[Reading]:
    """Return the ways to read a table; the user's columns take precedence over those of a format."""
    found = [] if format == "names" else [*match(RULES, table), *minionerec.readings(table), *recbole.readings(table)]
    if format and format != "names":
        found = [reading for reading in found if reading.format in (format, *SHARED.get(format, ()))]
        if not found:
            raise ValueError(f"{table.address}: not a file of {format}; its columns are {', '.join(table.columns[:20])}")
    own = names.chosen_here(columns, table.columns)
    if found and own and any(reading.select for reading in found):
        raise ValueError(
            f"{table.address}: read as {found[0].format}, a format with fixed columns; remove them from [data.columns], or read "
            f"all files by the names of their columns with --format names"
        )
    found = [reading._replace(columns={**reading.columns, **own}) if reading.columns else reading for reading in found]
    return found or names.readings(table, columns)


def _settle(
    con: duckdb.DuckDBPyConnection, choices: list[tuple[Table, list[Reading]]], notes: list[str]
) -> list[tuple[Table, Reading | None]]:
    """Choose one reading of each table, the one whose items occur in the interactions; drop readings that are not needed."""
    firm = {reading.role for _, readings in choices for reading in readings if not reading.standby}
    interactions = [
        _used_table(table, found[0], INTERACTION_COLUMNS) for table, found in choices if found and found[0].role == "interactions"
    ]
    settled: list[tuple[Table, Reading | None]] = []
    for table, readings in choices:
        readings = [reading for reading in readings if not (reading.standby and reading.role in firm)]
        if len(readings) > 1 and interactions:
            readings = [max(readings, key=lambda reading: _overlap(con, _used_table(table, reading, ITEM_COLUMNS), interactions))]
        reading = readings[0] if readings else None
        if reading and reading.note:
            notes.append(f"{table.address}: {reading.note}")
        settled.append((table, reading))
    return settled


def _overlap(con: duckdb.DuckDBPyConnection, items: UsedTable, interactions: list[UsedTable]) -> int:
    named = " UNION ".join(f"SELECT trim(item_id) FROM ({part.sql})" for part in interactions)
    return con.execute(f"SELECT count(DISTINCT item_id) FROM ({items.sql}) WHERE trim(item_id) IN ({named})").fetchall()[0][0]


def _of(used: list[tuple[Table, Reading | None]], role: str) -> list[tuple[Table, Reading]]:
    return [(table, reading) for table, reading in used if reading and reading.role == role]


def _used_table(table: Table, reading: Reading, wanted: Sequence[str]) -> UsedTable:
    if reading.select:
        inner = f"WITH source AS ({table.sql}) {reading.select(table.pick)}"
        cells = [ours if ours in reading.shown else f"CAST(NULL AS VARCHAR) AS {ours}" for ours in wanted]
        return UsedTable(table, reading, f"SELECT {', '.join(cells)} FROM ({inner})")
    cells = []
    for ours in wanted:
        theirs = [table.pick(name) for name in reading.columns.get(ours, ()) if name in table.columns]
        filled = [f"nullif(nullif({cell}, ''), '[]')" for cell in theirs]
        value = theirs[0] if len(theirs) == 1 else f"coalesce({', '.join(filled)})" if theirs else "CAST(NULL AS VARCHAR)"
        cells.append(f"{value} AS {ours}")
    return UsedTable(table, reading, f"SELECT {', '.join(cells)} FROM ({table.sql})")


def _items_of_interactions(interactions: list[UsedTable], notes: list[str]) -> list[UsedTable]:
    """Take items from interactions that have titles: one row for each id, with its most frequent title."""
    parts = [_used_table(table, reading, ITEM_COLUMNS) for table, reading, _ in interactions]
    parts = [part for part in parts if "title" in (part.reading.shown or part.reading.columns)]
    if not parts:
        return []
    rows = " UNION ALL ".join(f"SELECT * FROM ({part.sql})" for part in parts)
    ids = f"SELECT {stripped('item_id')} AS item_id, * EXCLUDE (item_id), row_number() OVER () AS n FROM ({rows})"
    titles = f"SELECT item_id, title, count(*) AS uses, min(n) AS n FROM ({ids}) WHERE title <> '' GROUP BY ALL"
    best = f"SELECT item_id, arg_max(title, (uses, -n)) AS title FROM ({titles}) GROUP BY item_id"
    rest = ", ".join(f"arg_min(nullif({column}, ''), n) AS {column}" for column in ITEM_COLUMNS[2:])
    others = f"SELECT item_id, min(n) AS n, {rest} FROM ({ids}) WHERE item_id IS NOT NULL GROUP BY item_id"
    columns = ", ".join(f"o.{column}" for column in ITEM_COLUMNS[2:])
    sql = f"SELECT o.item_id, b.title, {columns} FROM ({others}) o LEFT JOIN ({best}) b ON o.item_id = b.item_id ORDER BY o.n"
    notes.append(f"{parts[0].table.address}: items are taken from its rows, each with its most frequent title")
    return [UsedTable(parts[0].table, parts[0].reading._replace(role="items"), sql)]


def _check_complete(plan: Plan, unused: Sequence[str]) -> None:
    if plan.items and (plan.interactions or plan.splits):
        return
    lacking = "says who used which item" if plan.items else "has titles of items"
    seen = "; ".join(
        f"{table.address}: {reading.role if reading else 'not used'}, columns {', '.join(table.columns[:20])}"
        for table, reading in plan.tables
    )
    seen += "".join(f"; {address}: no table" for address in unused[:5])
    wanted = "user_id=... item_id=..." if plan.items else "item_id=... title=..."
    raise ValueError(
        f"no file {lacking}; found {seen.removeprefix('; ')}. If one does, name its columns in [data.columns] of the config, or "
        f"with --columns {wanted}"
    )
