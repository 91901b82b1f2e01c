"""Apply the policies of `data`: which items and interactions are kept, and how many are left out by reason.

Ids become numbers once; all sorting and counting uses the numbers.
"""

from collections import Counter

import numpy as np
from duckdb import DuckDBPyConnection

from digr.config.run import DataConfig
from digr.data.common_form import Source
from digr.data.database import count_of, rows_of

SECONDS, MILLISECONDS, MICROSECONDS = 10**11, 10**14, 10**17
"""Times below these are in seconds (until the year 5138), milliseconds and microseconds; larger ones in nanoseconds."""


def number_items(connection: DuckDBPyConnection, source: Source, data: DataConfig, rejected: Counter[str]) -> None:
    """Assign numbers to items in the order of ids, with the first row of each and whether it has a title.

    Raises:
        ValueError: an id occurs twice and the policy does not allow it.
    """
    connection.execute(
        "CREATE TABLE known_items AS SELECT item_id, row, titled, row_number() OVER (ORDER BY item_id) - 1 AS item_number FROM "
        "(SELECT item_id, min(row) AS row, arg_min(title IS NOT NULL, row) AS titled FROM items_read GROUP BY item_id)"
    )
    further = count_of(connection, "SELECT (SELECT count(*) FROM items_read) - (SELECT count(*) FROM known_items)")
    if further and data.duplicates == "error":
        doubled = "SELECT item_id, min(row) AS row FROM items_read GROUP BY item_id HAVING count(*) > 1"
        first, count = rows_of(connection, f"SELECT arg_min(item_id, row), count(*) FROM ({doubled})")[0]
        raise ValueError(
            f"{source.places['items']}: table items: duplicate key item_id={first!r} ({count} keys occur more than once); "
            f'data.duplicates = "drop" keeps the first row of each'
        )
    if further:
        rejected["further row of an item"] = further


def number_interactions(connection: DuckDBPyConnection, source: Source) -> None:
    """Assign numbers to users in the order of ids, and write interactions with both numbers and times in milliseconds.

    Raises:
        ValueError: times have several units or are before 1970, or there are no interactions.
    """
    scale = "time" if source.in_milliseconds else _milliseconds(connection, source.places["interactions"])
    connection.execute(
        "CREATE TABLE user_ids AS SELECT user_id, row_number() OVER (ORDER BY user_id) - 1 AS user_number FROM "
        "(SELECT DISTINCT user_id FROM interactions_read)"
    )
    connection.execute(
        f"CREATE TABLE interactions AS SELECT r.row, u.user_number::INTEGER AS user_number, "
        f"k.item_number::INTEGER AS item_number, k.titled, r.position::INTEGER AS position, {scale} AS time, r.rating "
        f"FROM interactions_read r "
        f"JOIN user_ids u USING (user_id) LEFT JOIN known_items k USING (item_id)"
    )
    if not count_of(connection, "SELECT count(*) FROM interactions"):
        raise ValueError(f"{source.places['interactions']}: the table has no interactions")


def _milliseconds(connection: DuckDBPyConnection, where: str) -> str:
    """Return the SQL that turns times since 1970 into milliseconds; their unit follows from their size."""
    least, most = rows_of(connection, "SELECT min(time), max(time) FROM interactions_read")[0]
    if least is None:
        return "time"
    if least < 0:
        raise ValueError(f"{where}: column timestamp: expected seconds or milliseconds since 1970, found {least}")
    sizes = [sum(value >= bound for bound in (SECONDS, MILLISECONDS, MICROSECONDS)) for value in (least, most)]
    if sizes[0] != sizes[1]:
        names = [("seconds", "milliseconds", "microseconds", "nanoseconds")[size] for size in sizes]
        raise ValueError(f"{where}: column timestamp: mixes {names[0]} and {names[1]} ({least} and {most})")
    return ("time * 1000", "time", "time // 1000", "time // 1000000")[sizes[0]]


def leave_out(connection: DuckDBPyConnection, source: Source, data: DataConfig, rejected: Counter[str]) -> None:
    """Leave out interactions with a low rating, with an unknown or untitled item, and duplicates.

    Raises:
        ValueError: a policy does not allow one of them, or no interaction is left.
    """
    where = source.places["interactions"]
    low = f"coalesce(i.rating < {float(data.min_rating)!r}, false)" if np.isfinite(data.min_rating) else "false"
    rated, orphaned, untitled = rows_of(
        connection,
        f"SELECT count(*) FILTER ({low}), count(*) FILTER (NOT {low} AND item_number IS NULL), "
        f"count(*) FILTER (NOT {low} AND NOT titled) FROM interactions i",
    )[0]
    for count, policy, test in ((orphaned, data.orphans, "item_number IS NULL"), (untitled, data.untitled, "NOT titled")):
        if count and policy == "error":
            raise _wrong_items(connection, source, f"NOT {low} AND {test}", untitled=test == "NOT titled")
    if rated or orphaned or untitled:
        connection.execute(f"DELETE FROM interactions i WHERE {low} OR item_number IS NULL OR NOT titled")
    rejected[f"interaction rated below {data.min_rating:g}"] = rated
    rejected["interaction with an unknown item"] = orphaned
    rejected["interaction with an untitled item"] = untitled
    if not source.has_position:
        _leave_out_doubles(connection, where, data, rejected)
    if not count_of(connection, "SELECT count(*) FROM interactions"):
        raise ValueError(f"{where}: no interaction is left: {_listed(rejected)}")


def _wrong_items(connection: DuckDBPyConnection, source: Source, test: str, untitled: bool) -> ValueError:
    num_items, first, num_rows = rows_of(
        connection,
        f"SELECT count(DISTINCT r.item_id), arg_min(r.item_id, r.row), count(*) FROM interactions i "
        f"JOIN interactions_read r USING (row) WHERE {test}",
    )[0]
    where, items = f"{source.places['interactions']}, item_id", source.places["items"].rsplit("/", 1)[-1]
    if untitled:
        return ValueError(
            f"{where}: {num_items} items have an empty title in {items} (first: {first!r}); "
            f'data.untitled = "drop" leaves out their {num_rows} interactions'
        )
    return ValueError(
        f"{where}: {num_items} items are not in {items} (first: {first!r}); "
        f'data.orphans = "drop" leaves out their {num_rows} interactions'
    )


def _leave_out_doubles(connection: DuckDBPyConnection, where: str, data: DataConfig, rejected: Counter[str]) -> None:
    """Keep the first row of each user, item and time, and all rows without a time."""
    connection.execute(
        "CREATE TABLE doubled AS SELECT user_number, item_number, time, min(row) AS first FROM interactions "
        "WHERE time IS NOT NULL GROUP BY user_number, item_number, time HAVING count(*) > 1"
    )
    doubled = "FROM interactions i JOIN doubled d USING (user_number, item_number, time) WHERE i.row > d.first"
    if not (count := count_of(connection, f"SELECT count(*) {doubled}")):
        return
    if data.duplicates == "error":
        raise ValueError(
            f"{where}: {count} rows repeat the user, item and time of another row (first: row "
            f"{count_of(connection, f'SELECT min(i.row) {doubled}')}); "
            f'data.duplicates = "drop" keeps the first of each'
        )
    connection.execute(f"DELETE FROM interactions WHERE row IN (SELECT i.row {doubled})")
    rejected["further row of a user, item and time"] += count


def keep_core(connection: DuckDBPyConnection, data: DataConfig, rejected: Counter[str]) -> None:
    """Drop users and items with fewer than `core` interactions, repeatedly until none has fewer.

    Raises:
        ValueError: no interaction is left.
    """
    if data.core <= 1:
        return
    total = count_of(connection, "SELECT count(*) FROM interactions")
    # only the remaining users and items and their counts are stored, the interactions are not copied; each round reads the
    # rows of the users or items that are dropped, and subtracts them from the counts of the other side
    for side in ("user", "item"):
        connection.execute(
            f"CREATE TABLE core_{side}s AS SELECT {side}_number, count(*) AS n FROM interactions GROUP BY {side}_number"
        )
    is_core = False
    while not is_core:
        left = [_leave_core(connection, data.core, *sides) for sides in (("user", "item"), ("item", "user"))]
        is_core = not any(left)
    inside = "FROM interactions SEMI JOIN core_users USING (user_number) SEMI JOIN core_items USING (item_number)"
    kept = count_of(connection, f"SELECT count(*) {inside}")
    if not kept:
        raise ValueError(f"data.core: no interaction is left of {total} with core = {data.core}; choose a smaller core")
    if kept < total:
        connection.execute(f"CREATE OR REPLACE TABLE interactions AS SELECT interactions.* {inside}")
        rejected[f"interaction outside the {data.core}-core"] = total - kept


def _leave_core(connection: DuckDBPyConnection, core: int, side: str, other: str) -> bool:
    """Drop the users or items that have too few interactions; return whether there was one."""
    few = f"FROM core_{side}s WHERE n < {int(core)}"
    if not count_of(connection, f"SELECT count(*) {few}"):
        return False
    connection.execute(
        f"CREATE OR REPLACE TABLE lost AS SELECT {other}_number, count(*) AS n FROM interactions "
        f"SEMI JOIN (SELECT {side}_number {few}) USING ({side}_number) SEMI JOIN core_{other}s USING ({other}_number) "
        f"GROUP BY {other}_number"
    )
    connection.execute(f"DELETE {few}")
    connection.execute(f"UPDATE core_{other}s AS c SET n = c.n - lost.n FROM lost WHERE c.{other}_number = lost.{other}_number")
    return True


def choose_items(connection: DuckDBPyConnection, data: DataConfig, rejected: Counter[str]) -> None:
    """Choose the items with a title; with a core, only those that its interactions contain."""
    untitled = count_of(connection, "SELECT count(*) FROM known_items WHERE NOT titled")
    if untitled:
        rejected["item without title" if data.untitled == "drop" else "item without title or interaction"] = untitled
    inside = "SEMI JOIN interactions USING (item_number)" if data.core > 1 else ""
    connection.execute(f"CREATE TABLE catalogue AS SELECT item_id, known_items.row FROM known_items {inside} WHERE titled")
    titled = count_of(connection, "SELECT count(*) FROM known_items WHERE titled")
    if outside := titled - count_of(connection, "SELECT count(*) FROM catalogue"):
        rejected[f"item outside the {data.core}-core"] = outside


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count)
