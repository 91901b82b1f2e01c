"""Count the rows that an import keeps, and the rows that it leaves out by reason; the files are read as queries."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import duckdb

from digr.data.importing.rules import Reading
from digr.data.importing.tables import Table
from digr.data.importing.times import TimeForm, find_form, with_times

SPACE = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
"""Every character that Python's `str.strip` removes."""
MANY = 1000
"""A column of users is checked for repeated ids if it has at least this many rows."""
UNIQUE_RATE = 0.97
"""A column with more distinct values per row than this (an estimate) holds no user ids, because they hardly repeat."""


class UsedTable(NamedTuple):
    """A table that the import uses: a query of its rows as texts, with the column names of the common form."""

    table: Table
    reading: Reading
    sql: str


class Plan(NamedTuple):
    """What an import will do."""

    con: duckdb.DuckDBPyConnection
    tables: list[tuple[Table, Reading | None]]
    """All tables and how each is read; None if it is not used."""
    interactions: list[UsedTable]
    items: list[UsedTable]
    splits: dict[str, list[UsedTable]]
    original_ids: dict[str, list[UsedTable]]
    """Tables that give the original of a numbered user_id or item_id."""
    time_forms: list[TimeForm | None]
    """How each part of `interactions` writes times; None for a part without times."""
    dropped: dict[str, dict[str, int]]
    """Table -> reason -> rows that are read and not written."""
    rows: dict[str, int]
    """Rows that will be written, by table, if known before writing."""
    facts: dict[str, Any]
    notes: list[str]


def stripped(column: str) -> str:
    """Return the SQL of an id without white space around it; an empty id becomes null."""
    # trimming is the slowest step of an import, and hardly any row needs it
    ends = f"left({column}, 1) BETWEEN '!' AND '~' AND right({column}, 1) BETWEEN '!' AND '~'"
    return f"CASE WHEN {ends} THEN {column} ELSE nullif(trim({column}, '{SPACE}'), '') END"


def count_interactions(plan: Plan, events: Sequence[str], dates: str) -> None:
    """Find out how times are written, count rows by reason, and refuse columns that were clearly misread.

    Raises:
        ValueError: the columns of times or users hold something else, only some files have times, or no row is left.
    """
    _check_positions(plan)
    timed = [_has_times(plan, part) for part in plan.interactions]
    if any(timed) and not all(timed):
        without = next(part for part, has in zip(plan.interactions, timed, strict=True) if not has)
        raise ValueError(
            f"{without.table.address}: has no times, but other files do; set timestamp to its column in "
            f"[data.columns], or leave the file out"
        )
    dropped: dict[str, int] = {}
    facts: dict[str, Any] = {"ids_stripped": 0, "ratings_unreadable": 0}
    for part, has in zip(plan.interactions, timed, strict=True):
        # if there are positions, a row may lack its time
        form = find_form(plan.con, part.sql, dates)._replace(needed=not plan.facts["positions"]) if has else None
        plan.time_forms.append(form)
        if form and form.note:
            plan.notes.append(f"{part.table.address}: {form.note}")
        counts = _counts(plan.con, part, form, events)
        _check_counts(part, counts, has)
        for reason in ("no user id", "no item id", "event not chosen", "unreadable time"):
            dropped[reason] = dropped.get(reason, 0) + counts[reason]
        for fact in ("ids_stripped", "ratings_unreadable"):
            facts[fact] += counts[fact]
        plan.rows["interactions"] = plan.rows.get("interactions", 0) + counts["written"]
        if counts["first_time"] is not None:
            facts["first_time"] = min(facts.get("first_time", counts["first_time"]), counts["first_time"])
            facts["last_time"] = max(facts.get("last_time", counts["last_time"]), counts["last_time"])
    plan.dropped["interactions"] = {reason: count for reason, count in dropped.items() if count}
    plan.facts.update(facts)
    _count_events(plan, events)
    if plan.interactions and not plan.rows["interactions"]:
        raise ValueError(f"no interaction is left: {plan.dropped['interactions'] or 'the files have no rows'}")


def _has_times(plan: Plan, part: UsedTable) -> bool:
    """Whether a part's column of times has any value."""
    if "timestamp" not in (part.reading.shown or part.reading.columns):
        return False
    if plan.con.execute(f"SELECT 1 FROM ({part.sql}) WHERE trim(timestamp) <> '' LIMIT 1").fetchall():
        return True
    plan.notes.append(f"{part.table.address}: the column of times is empty")
    return False


def kept_interactions(part: UsedTable, form: TimeForm | None, events: Sequence[str]) -> str:
    """Return the SQL of a part's interactions with a column `reason`, which is null for rows that are kept."""
    relation = with_times(part.sql, form) if form else part.sql
    chosen = ", ".join("'" + event.replace("'", "''") + "'" for event in events)
    wrong_event = f"WHEN event IS NULL OR event NOT IN ({chosen}) THEN 'event not chosen'" if events else ""
    wrong_time = "WHEN timestamp IS NULL THEN 'unreadable time'" if form and form.needed else ""
    reason = f"CASE WHEN u IS NULL THEN 'no user id' WHEN i IS NULL THEN 'no item id' {wrong_event} {wrong_time} END"
    ids = f"SELECT *, {stripped('user_id')} AS u, {stripped('item_id')} AS i, try_cast(rating AS DOUBLE) AS r FROM ({relation})"
    return f"SELECT *, {reason} AS reason FROM ({ids})"


def _counts(con: duckdb.DuckDBPyConnection, part: UsedTable, form: TimeForm | None, events: Sequence[str]) -> dict[str, Any]:
    reasons = ("no user id", "no item id", "event not chosen", "unreadable time")
    times = "min(timestamp) FILTER (reason IS NULL), max(timestamp) FILTER (reason IS NULL)" if form else "NULL, NULL"
    cells = [
        "count(*)",
        *(f"count(*) FILTER (reason = '{reason}')" for reason in reasons),
        "count(*) FILTER (reason IS NULL)",
        "count(*) FILTER (user_id <> u OR item_id <> i)",
        "count(*) FILTER (r IS NULL AND rating <> '')",
        times,
        "approx_count_distinct(u)",
    ]
    [row] = con.execute(f"SELECT {', '.join(cells)} FROM ({kept_interactions(part, form, events)})").fetchall()
    names = ("rows", *reasons, "written", "ids_stripped", "ratings_unreadable", "first_time", "last_time", "users")
    return dict(zip(names, row, strict=True))


def _check_counts(part: UsedTable, counts: dict[str, Any], timed: bool) -> None:
    known = part.reading.shown or {ours: ", ".join(theirs) for ours, theirs in part.reading.columns.items()}
    if timed and counts["rows"] and counts["first_time"] is None and (counts["unreadable time"] or counts["written"]):
        raise ValueError(
            f"{part.table.address}: no value of {known['timestamp']!r} is a time; set timestamp to another column in "
            f"[data.columns]"
        )
    if counts["rows"] >= MANY and counts["users"] > UNIQUE_RATE * counts["rows"]:
        raise ValueError(
            f"{part.table.address}: {known['user_id']!r} has a different value in nearly every row ({counts['users']:,} of "
            f"{counts['rows']:,}), so it is not a user id; set user_id to the right column in [data.columns]"
        )


def _count_events(plan: Plan, events: Sequence[str]) -> None:
    counts: dict[str, int] = {}
    for part in plan.interactions:
        if "event" in (part.reading.shown or part.reading.columns):
            for event, count in plan.con.execute(
                f"SELECT event, count(*) FROM ({part.sql}) GROUP BY event ORDER BY 2 DESC"
            ).fetchmany(50):
                counts[event or "(none)"] = counts.get(event or "(none)", 0) + count
    if events and (unknown := [event for event in events if event not in counts]):
        there = ", ".join(map(str, counts)) or "no event column"
        raise ValueError(f"--events {unknown[0]}: no row has this event; found {there}")
    if counts:
        plan.facts["events"] = counts


def _check_positions(plan: Plan) -> None:
    """Use positions only if every row has one and no user has one twice; otherwise they are no order in time."""
    having = [part for part in plan.interactions if "position" in (part.reading.shown or part.reading.columns)]
    plan.facts["positions"] = bool(having) and len(having) == len(plan.interactions)
    if not plan.facts["positions"]:
        return
    union = " UNION ALL ".join(f"SELECT user_id, position FROM ({part.sql})" for part in having)
    [(odd, twice)] = plan.con.execute(
        f"SELECT count(*) FILTER (try_cast(position AS INTEGER) IS NULL), count(*) - count(DISTINCT (user_id, position)) "
        f"FROM ({union})"
    ).fetchall()
    if odd or twice:
        plan.facts["positions"] = False
        plan.notes.append(f"position is not used: {odd} rows have none and {twice} share it with another row of their user")


def count_items(plan: Plan) -> None:
    """Find out how many items have no id.

    Raises:
        ValueError: no item has an id.
    """
    missing = stripped_ids = rows = 0
    for part in plan.items:
        counts = plan.con.execute(
            f"SELECT count(*), count(*) FILTER (i IS NULL), count(*) FILTER (item_id <> i) FROM "
            f"(SELECT item_id, {stripped('item_id')} AS i FROM ({part.sql}))"
        ).fetchall()[0]
        rows, missing, stripped_ids = rows + counts[0], missing + counts[1], stripped_ids + counts[2]
    plan.dropped["items"] = {"no item id": missing} if missing else {}
    plan.rows["items"] = rows - missing
    plan.facts["item_ids_stripped"] = stripped_ids
    if not plan.rows["items"]:
        raise ValueError("no item is left: the files have no row with an item id")
    _check_known(plan)


def _check_known(plan: Plan) -> None:
    """Count the items of interactions that are in the catalogue; if none is, a column is wrong."""
    if not plan.interactions:
        return
    named = " UNION ALL ".join(f"SELECT {stripped('item_id')} AS i FROM ({part.sql})" for part in plan.interactions)
    items = " UNION ALL ".join(f"SELECT {stripped('item_id')} FROM ({part.sql})" for part in plan.items)
    named = f"SELECT DISTINCT i FROM ({named}) WHERE i IS NOT NULL"
    items_found = f"SELECT i FROM ({items}) AS found(i) WHERE i IS NOT NULL"
    [(all_named, known)] = plan.con.execute(f"SELECT count(*), count(*) FILTER (i IN ({items})) FROM ({named})").fetchall()
    plan.facts.update({"items_named": all_named, "items_known": known})
    if not known:
        [(one,), (other,)] = [plan.con.execute(f"SELECT i FROM ({ids}) LIMIT 1").fetchall()[0] for ids in (named, items_found)]
        raise ValueError(
            f"none of the {all_named:,} item ids of the interactions (such as {one!r}) is among the items (such as {other!r}): "
            f"one of the two columns holds another kind of id; set item_id to the right columns in [data.columns]"
        )
