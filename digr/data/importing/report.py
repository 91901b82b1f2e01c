"""Print what an import reads, how it maps columns, rows before and after, and how many rows it leaves out."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from digr.data.importing.counts import Plan, UsedTable, kept_interactions
from digr.data.importing.items import clean_items
from digr.data.importing.rules import Reading
from digr.data.importing.tables import Table

EXAMPLES = 3
WIDTH = 60
AGAIN = re.compile(r"(.*) \(\d+\)")
DELIMITERS = {"\t": "tab", "\x01": "\\x01"}


def describe(plan: Plan, events: Sequence[str]) -> Iterator[str]:
    """Yield the lines to print before anything is written."""
    for table, reading in plan.tables:
        yield from _file_lines(table, reading)
    for part, form in zip(plan.interactions, plan.time_forms, strict=True):
        yield f"interactions from {part.table.address}"
        rows = kept_interactions(part, form, events)
        kept = f"SELECT u AS user_id, i AS item_id, timestamp, r AS rating FROM ({rows}) WHERE reason IS NULL"
        yield from _examples(plan, part, kept)
    for part in plan.items:
        yield f"items from {part.table.address}"
        yield from _item_examples(plan, part)
    for split, parts in plan.splits.items():
        yield f"split {split} from {', '.join(part.table.address for part in parts)}"
    for note in plan.notes:
        yield f"note: {note}"
    yield from _fact_lines(plan)


def _file_lines(table: Table, reading: Reading | None) -> Iterator[str]:
    first = table.files[0]
    delimiter = f", delimiter {DELIMITERS.get(first.delimiter, first.delimiter)!r}" if first.delimiter else ""
    encoding = f", {table.encoding}" if table.encoding else ""
    bad = f", {table.bad:,} that cannot be read and are left out ({table.first_bad or 'no valid rows'})" if table.bad else ""
    damaged = sum(file.damaged for file in table.files)
    broken = f", {damaged:,} lines with bytes that are not text" if damaged else ""
    role = f"{reading.format}, {reading.role}" if reading else "not used"
    yield f"{table.address}: {role}; {first.kind}{encoding}{delimiter}, {table.rows:,} rows{bad}{broken}"
    if not reading or reading.role == "ignored":
        yield f"  columns: {', '.join(table.columns[:40])}"
        return
    mapping = reading.shown or {ours: ", else ".join(theirs) for ours, theirs in reading.columns.items()}
    for ours, theirs in mapping.items():
        yield f"  {theirs} -> {ours}"
    used = {name for theirs in reading.columns.values() for name in theirs} | {
        column for theirs in reading.shown.values() for column in table.columns if column in theirs
    }
    if again := [name for name in table.columns if (same := AGAIN.fullmatch(name)) and same[1] in table.columns]:
        yield f"  columns of the same name as one before them: {', '.join(again)}; --columns OURS='{again[0]}' reads this one"
    if unused := [column for column in table.columns if column not in used]:
        yield f"  not used: {', '.join(unused[:40])}"


def _examples(plan: Plan, part: UsedTable, query: str) -> Iterator[str]:
    for row in part.table.sample[:EXAMPLES]:
        yield f"  before: {_row(dict(zip(part.table.columns, row, strict=True)))}"
    result = plan.con.execute(f"{query} LIMIT {EXAMPLES}")
    names = [column[0] for column in result.description]
    for row in result.fetchall():
        values = dict(zip(names, row, strict=True))
        if isinstance(moment := values.get("timestamp"), int):
            values["timestamp"] = _time(moment)
        yield f"  after:  {_row(values)}"


def _item_examples(plan: Plan, part: UsedTable) -> Iterator[str]:
    for row in part.table.sample[:EXAMPLES]:
        yield f"  before: {_row(dict(zip(part.table.columns, row, strict=True)))}"
    table = plan.con.sql(f"SELECT * FROM ({part.sql}) LIMIT {EXAMPLES}").to_arrow_table()
    for batch in table.to_batches():
        for values in clean_items(batch, part.table.files[0].given.base).to_pylist():
            yield f"  after:  {_row(values)}"


def _row(values: Mapping[str, Any]) -> str:
    """Show a row's values that are not missing, each cut to a readable length."""
    return ", ".join(f"{name}={_cut(value)}" for name, value in values.items() if value not in (None, ""))


def _cut(value: Any) -> str:
    text = repr(value) if not isinstance(value, float) else f"{value:g}"
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def _fact_lines(plan: Plan) -> Iterator[str]:
    if "first_time" in plan.facts:
        yield f"times from {_time(plan.facts['first_time'])} to {_time(plan.facts['last_time'])}"
    if events := plan.facts.get("events"):
        yield "events: " + ", ".join(f"{event} {count:,}" for event, count in events.items()) + " (--events keeps some of them)"
    if plan.facts["ids_stripped"] + plan.facts["item_ids_stripped"]:
        count = plan.facts["ids_stripped"] + plan.facts["item_ids_stripped"]
        yield f"ids with white space around them, which is removed: {count:,} rows"
    if "items_known" in plan.facts:
        yield f"of {plan.facts['items_named']:,} items of the interactions, {plan.facts['items_known']:,} are in the catalogue"
    for name, reasons in plan.dropped.items():
        for reason, count in reasons.items():
            yield f"left out of {name}: {count:,} rows: {reason}"
    if plan.facts["ratings_unreadable"]:
        yield f"ratings that are not numbers, which become null: {plan.facts['ratings_unreadable']:,}"
    rows = ", ".join(f"{count:,} {name}" for name, count in plan.rows.items())
    yield f"to write: {rows}"
