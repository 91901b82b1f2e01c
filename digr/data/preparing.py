"""Turn raw rows into a catalogue and each user's ordered interactions, and count the rows that are left out by reason.

All of it runs in a DuckDB database on disk. Ids become numbers once; all sorting and counting uses the numbers. Rows are
returned user by user, so that writing them needs memory for one part of the users only.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from duckdb import DuckDBPyConnection

from digr.config.run import DataConfig
from digr.data.common_form import INTERACTION_ROWS, ITEM_ROWS, SPLIT_ROWS, Source
from digr.data.database import count_of, load_rows, open_database, rows_of, stream_rows
from digr.data.histories import HistoryBuilder
from digr.data.policies import choose_items, keep_core, leave_out, number_interactions, number_items
from digr.data.sequences import user_interactions
from digr.tables import SPLITS, TABLES

TIES = {"file_order": "the order of rows", "random": "chance", "error": "nothing, since no user has two of one time"}
PROGRAM = f"digr {version('digr')}, duckdb {version('duckdb')}"
"""What wrote a database; another program does not go on with it."""
SMALL_SHARE = 0.1
"""A warning is given if a core keeps less than this share of the interactions."""


class Prepared(NamedTuple):
    """Facts of the database after rows are checked and chosen."""

    item_ids: pa.Array
    """Ids of all items that were read, ascending; interactions hold positions in this array."""
    item_starts: list[str]
    """First id of each part of the catalogue, see `digr.partitions`."""
    user_starts: list[str]
    """First id of each part of the users."""
    first_users: list[int]
    """First user number of each part of the users."""
    official: bool
    """Whether there are official splits."""
    num_users: int
    num_items: int
    num_interactions: int
    num_targets: int
    """Number of interactions without each user's first."""
    ordered_by: str
    """The order of a user's interactions, in words."""
    rejected_items: Mapping[str, int] = MappingProxyType({})
    """Items that were left out, by reason."""
    rejected_interactions: Mapping[str, int] = MappingProxyType({})
    """Interactions that were left out, by reason."""
    mended: Mapping[str, int] = MappingProxyType({})
    """Values of items that were changed, by reason."""
    notes: Sequence[str] = ()
    """Messages for the user."""


def prepare(connection: DuckDBPyConnection, source: Source, data: DataConfig, seed: int, *, one_user_in: int = 1) -> Prepared:
    """Read a source into a database, apply the policies of `data`, and order each user's interactions.

    With official splits no policy removes interactions, because the splits may refer to them. A database in which this was
    done for the same source, data and seed stays as it is, and one in which it was begun is emptied first.

    Args:
        connection: the database.
        source: what to read.
        data: the policies, the core and the split.
        seed: for the random order of equal times.
        one_user_in: read only one user in so many, for a look at large data.

    Raises:
        ValueError: a policy does not allow a row, times or positions are missing where they are needed, or no row is left.
    """
    if told := _read_told(connection):
        return _summary(connection, source, data)._replace(**told)
    official = bool(source.splits)
    if official:
        data = data.model_copy(update={"orphans": "error", "duplicates": "error", "untitled": "error", "min_rating": -np.inf})
    rejected_items, rejected = Counter[str](), Counter[str]()
    notes = list(source.notes)
    load_rows(connection, "items_read", ITEM_ROWS, source.items)
    drawn = f"hash(user_id) % {int(one_user_in)} = 0"
    load_rows(connection, "interactions_read", INTERACTION_ROWS, source.interactions, drawn)
    for number, (split, rows) in enumerate(source.splits.items()):
        load_rows(connection, f"split_{number}", SPLIT_ROWS, rows, drawn)
        if not count_of(connection, f"SELECT count(*) FROM split_{number}"):
            raise ValueError(f"{source.places[split]}: the split is empty; every split needs at least one row")
    notes += [f"{count} times in {source.places['items']}: {reason}" for reason, count in source.mended.items()]
    if data.currency:
        connection.execute(f"UPDATE items_read SET currency = '{data.currency}' WHERE currency IS NULL AND price IS NOT NULL")
    number_items(connection, source, data, rejected_items)
    number_interactions(connection, source)
    leave_out(connection, source, data, rejected)
    connection.execute("DROP TABLE interactions_read")  # its rows are in `interactions` now, in numbers
    notes += _check_order(connection, source, data)
    keep_core(connection, data, rejected)
    choose_items(connection, data, rejected_items)
    if official:
        _number_splits(connection, source)
    _order(connection, source, data, seed)
    told = {
        "rejected_items": {reason: count for reason, count in rejected_items.items() if count},
        "rejected_interactions": {reason: count for reason, count in rejected.items() if count},
        "mended": dict(source.mended),
        "notes": notes,
    }
    connection.execute("CREATE TABLE told AS SELECT ? AS program, ? AS facts", [PROGRAM, json.dumps(told)])
    return _summary(connection, source, data)._replace(**told)


def _read_told(connection: DuckDBPyConnection) -> dict[str, Any]:
    """Return what only the reading of the rows tells, if the database is complete; drop its tables if it is not."""
    tables = [name for (name,) in rows_of(connection, "SELECT table_name FROM duckdb_tables()")]
    if "told" in tables:
        [(program, facts)] = rows_of(connection, "SELECT program, facts FROM told")
        if program == PROGRAM:
            return dict(json.loads(facts))
    for name in tables:
        connection.execute(f"DROP TABLE {name}")
    return {}


def iter_items(connection: DuckDBPyConnection, prepared: Prepared, first: int = 0) -> Iterator[pa.Table]:
    """Yield the rows of `items` of each part of the catalogue from number `first`, sorted by id."""
    starts = prepared.item_starts[first:]
    if not starts:
        return
    columns = ", ".join(f"r.{name}" for name in TABLES["items"].schema.names)
    query = f"SELECT {columns} FROM items_read r JOIN catalogue c ON r.row = c.row WHERE r.item_id >= ? ORDER BY r.item_id"
    yield from _parts(stream_rows(connection, query, 8192, starts[:1]), "item_id", starts[1:])


def iter_users(
    connection: DuckDBPyConnection, prepared: Prepared, builder: HistoryBuilder, first: int = 0
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yield `interactions` and `histories` of each part of the users from number `first`, sorted by user and position.

    Args:
        builder: makes the histories; it knows the parts before `first`.
    """
    starts = prepared.first_users[first:]
    if not starts:
        return
    later = "WHERE user_number >= ?"
    query = f"SELECT * FROM ordered {later} ORDER BY user_number, position"
    rows = stream_rows(connection, query, values=starts[:1])
    published: Iterator[pa.Table | None] = itertools.repeat(None)
    if prepared.official:
        query = f"SELECT * FROM published {later} ORDER BY user_number, split, row"
        published = _parts(stream_rows(connection, query, values=starts[:1]), "user_number", starts[1:])
    for table, splits in zip(_parts(rows, "user_number", starts[1:]), published, strict=False):
        item_ids = prepared.item_ids.take(table["item_number"].combine_chunks())
        time = table["time"].cast(pa.timestamp("ms", tz="UTC"))
        columns = {"user_id": table["user_id"], "position": table["position"], "item_id": item_ids, "timestamp": time}
        interactions = pa.table(columns | {"rating": table["rating"]}, schema=TABLES["interactions"].schema)
        yield interactions, builder.add(user_interactions(table, prepared.item_ids), splits)


class PreparedTables(NamedTuple):
    """Tables of a small catalogue in memory, with counts of rejected rows, facts and messages for the user."""

    items: pa.Table
    interactions: pa.Table
    histories: pa.Table
    rejected: dict[str, Mapping[str, int]]
    """By table."""
    facts: dict[str, Any]
    notes: Sequence[str]


def prepare_tables(source: Source, data: DataConfig, seed: int = 0) -> PreparedTables:
    """Prepare a catalogue that fits into memory at once; `jobs.prepare_data` does the same part by part."""
    with open_database(1.0) as connection:
        prepared = prepare(connection, source, data, seed)
        builder = HistoryBuilder(data.split, data.max_history, prepared.item_ids, prepared.num_targets)
        parts = list(iter_users(connection, prepared, builder))
        items = pa.concat_tables(iter_items(connection, prepared))
    rejected, facts = builder.finish()
    return PreparedTables(
        items,
        pa.concat_tables(part[0] for part in parts),
        pa.concat_tables(part[1] for part in parts),
        {"items": prepared.rejected_items, "interactions": prepared.rejected_interactions, "histories": rejected},
        facts,
        prepared.notes,
    )


def losses(prepared: Prepared, left_out: Mapping[str, int], core: int) -> list[str]:
    """Return a line for each reason why rows were left out.

    Args:
        prepared: the prepared data.
        left_out: users without examples, by reason, see `HistoryBuilder.finish`.
        core: `data.core` of the config.
    """
    lines = []
    for what, kept, counts in (
        ("items", prepared.num_items, prepared.rejected_items),
        ("interactions", prepared.num_interactions, prepared.rejected_interactions),
    ):
        total = kept + sum(counts.values())
        lines += [f"{count:,} of {total:,} {what} left out: {reason}" for reason, count in counts.items()]
    for reason, count in left_out.items():
        lines.append(f"{count:,} of {prepared.num_users:,} users dropped: {reason.removeprefix('user with ')}")
    outside = prepared.rejected_interactions.get(f"interaction outside the {core}-core", 0)
    if outside and prepared.num_interactions < SMALL_SHARE * (prepared.num_interactions + outside):
        lines.append(
            f"WARNING: data.core = {core} keeps {prepared.num_interactions:,} of {prepared.num_interactions + outside:,} "
            f"interactions; a smaller core keeps more"
        )
    return lines


def _parts(rows: pa.RecordBatchReader, column: str, ends: Sequence[str] | Sequence[int]) -> Iterator[pa.Table]:
    """Cut rows that are sorted by a column into parts, some may be empty; `ends` are the values at which a new part begins."""
    held: list[pa.RecordBatch] = []
    bounds = pa.array(ends, rows.schema.field(column).type)
    part = 0
    for batch in rows:
        cuts = pc.search_sorted(batch[column], bounds[part:]).to_numpy() if part < len(bounds) else np.zeros(0, np.int64)
        before = 0
        for cut in cuts[cuts < len(batch)].tolist():
            yield pa.Table.from_batches([*held, batch.slice(before, cut - before)], rows.schema)
            held, before, part = [], cut, part + 1
        held.append(batch.slice(before))
    for _ in range(part, len(bounds) + 1):
        yield pa.Table.from_batches(held, rows.schema)
        held = []


def _check_order(connection: DuckDBPyConnection, source: Source, data: DataConfig) -> list[str]:
    """Check that the interactions have an order in time; return a warning if it is unknown."""
    where = source.places["interactions"]
    untimed = count_of(connection, "SELECT count(*) FROM interactions WHERE time IS NULL")
    total = count_of(connection, "SELECT count(*) FROM interactions")
    if data.split == "temporal" and untimed:
        raise ValueError(f'data.split = "temporal": {untimed} of {total} interactions have no timestamp; use "leave_one_out"')
    if source.has_position:
        return _rated_order(connection, where, "position") if untimed == total else []
    if untimed == total:
        return [
            f"WARNING: {where} has neither position nor timestamp: the order of its rows is taken as the order in time. If it "
            f"is not (play counts, lists of favourites), metrics of the next item mean nothing",
            *_rated_order(connection, where, "row"),
        ]
    if untimed:
        raise ValueError(
            f"{where}: {untimed} of {total} interactions have no timestamp, and there is no column position to order them; "
            f"fill in either column, or remove these rows"
        )
    if data.ties == "error":
        pairs = count_of(connection, "SELECT count(*) FROM (SELECT DISTINCT user_number, time FROM interactions)")
        if tied := total - pairs:
            raise ValueError(f'{where}: {tied} interactions have the time of another one of their user; data.ties = "error"')
    return []


def _rated_order(connection: DuckDBPyConnection, where: str, order: str) -> list[str]:
    """Warn if the ratings of rows without times mostly fall, as in lists sorted by play counts."""
    falls, rises = rows_of(
        connection,
        f"SELECT count(*) FILTER (rating < before), count(*) FILTER (rating > before) FROM (SELECT rating, "
        f"lag(rating) OVER (PARTITION BY user_number ORDER BY {order}) AS before FROM interactions WHERE rating IS NOT NULL)",
    )[0]
    if falls < 100 or rises * 20 > falls:
        return []
    return [
        f"WARNING: {where}: in {order} order, ratings fall {falls} times and rise {rises} times, as in a list sorted by "
        f"rating. This is not an order in time, so metrics of the next item mean nothing"
    ]


def _number_splits(connection: DuckDBPyConnection, source: Source) -> None:
    """Join user numbers to the official splits, and check that all their items and users are known."""
    items = source.places["items"].rsplit("/", 1)[-1]
    for number, split in enumerate(SPLITS):
        for column, ids in (("history", "unnest(history)"), ("target", "target")):
            # report items without a title before unknown items
            found = rows_of(
                connection,
                f"SELECT untitled, count(*), arg_min(item_id, (row, item_id)) FROM "
                f"(SELECT item_id, min(row) AS row, bool_or(item_id IN (SELECT item_id FROM known_items)) AS untitled FROM "
                f"(SELECT {ids} AS item_id, row FROM split_{number}) "
                f"WHERE item_id NOT IN (SELECT item_id FROM known_items WHERE titled) GROUP BY item_id) "
                f"GROUP BY untitled ORDER BY untitled DESC",
            )
            if found:
                untitled, count, first = found[0]
                what = f"items have an empty title in {items}" if untitled else f"items are not in {items}"
                raise ValueError(f"{source.places[split]}, {column}: {count} {what} (first: {first!r})")
    union = " UNION ALL ".join(f"SELECT {number} AS split, * FROM split_{number}" for number in range(len(SPLITS)))
    connection.execute(
        f"CREATE TABLE published AS SELECT u.user_number::INTEGER AS user_number, s.split, s.row, s.user_id, s.history, s.target "
        f"FROM ({union}) s LEFT JOIN user_ids u USING (user_id)"
    )
    stranger = rows_of(
        connection, "SELECT split, row, user_id, target FROM published WHERE user_number IS NULL ORDER BY split, row LIMIT 1"
    )
    if stranger:
        split, row, user_id, target = stranger[0]
        raise ValueError(
            f"splits/{SPLITS[split]}.parquet, row {row}: user {user_id!r}, target {target!r}: split rows do not follow the "
            f"interactions; this user has none"
        )


def _order(connection: DuckDBPyConnection, source: Source, data: DataConfig, seed: int) -> None:
    """Order each user's interactions, and rank all targets by time if the split needs it."""
    tie = f"hash(row, {int(seed)}), row" if data.ties == "random" else "row"
    order = "position" if source.has_position else f"time, {tie}"
    position = "position" if source.has_position else "(nth - 1)::INTEGER"
    placed = (
        f"SELECT *, row_number() OVER places AS nth, max(row) OVER (places ROWS UNBOUNDED PRECEDING) AS latest_row "
        f"FROM interactions WINDOW places AS (PARTITION BY user_number ORDER BY {order})"
    )
    rank = "NULL::BIGINT"
    if data.split == "temporal":
        # the raw row breaks ties of time; its running maximum keeps each user's order if the file has another
        rank = (
            "CASE WHEN nth > 1 THEN row_number() OVER (PARTITION BY nth > 1 ORDER BY time, latest_row, user_number, nth) - 1 END"
        )
    elif source.has_position:
        placed = "SELECT * FROM interactions"
    connection.execute(
        f"CREATE TABLE ordered AS SELECT user_number, user_id, item_number, {position} AS position, time, rating, {rank} AS rank "
        f"FROM ({placed}) JOIN user_ids USING (user_number)"
    )


def _summary(connection: DuckDBPyConnection, source: Source, data: DataConfig) -> Prepared:
    """Return the facts of the database, without the counts of rejected rows."""
    users = (
        "(SELECT user_id, user_number, row_number() OVER (ORDER BY user_number) - 1 AS n FROM user_ids "
        "SEMI JOIN interactions USING (user_number))"
    )
    starts: list[Any] = rows_of(
        connection, f"SELECT user_id, user_number FROM {users} WHERE n % {int(data.users_per_part)} = 0 ORDER BY n"
    )
    items = rows_of(
        connection,
        f"SELECT item_id FROM (SELECT item_id, row_number() OVER (ORDER BY item_id) - 1 AS n FROM catalogue) "
        f"WHERE n % {int(data.items_per_part)} = 0 ORDER BY n",
    )
    num_users = count_of(connection, "SELECT count(DISTINCT user_number) FROM interactions")
    rows, timed = rows_of(connection, "SELECT count(*), count(time) FROM interactions")[0]
    item_ids = connection.sql("SELECT item_id FROM known_items ORDER BY item_number").to_arrow_table()["item_id"].combine_chunks()
    return Prepared(
        item_ids=item_ids,
        item_starts=["", *(row[0] for row in items[1:])],
        user_starts=["", *(row[0] for row in starts[1:])],
        first_users=[0, *(row[1] for row in starts[1:])],
        official=bool(source.splits),
        num_users=num_users,
        num_interactions=rows,
        num_items=count_of(connection, "SELECT count(*) FROM catalogue"),
        num_targets=rows - num_users,
        ordered_by="position" if source.has_position else f"timestamp, then {TIES[data.ties]}" if timed else "the order of rows",
    )
