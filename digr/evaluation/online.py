"""Evaluate the lists that users were shown by what they did next.

A list is followed by an event of one of its items: by the event that names the list, else by one of the same user within the
window, which counts for the user's newest earlier list with that item. HR@k is the share of lists followed by an event of one
of their first k items; NDCG@k discounts by position. For a source or an interest only the items that carry it count, and only
the lists that have one among the first k. Lists of similar items answer another question, so they count in slices of their own.

Everything is joined and summed in a database that spills to disk; only one number per user and column is ever resampled.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from digr.data.database import count_of, rows_of
from digr.data.event_store import events_log, impressions_log, load_log
from digr.evaluation.metrics import INTERVAL
from digr.evaluation.resampling import resample_users

_ITEMS = "SELECT n, position, item_id, {} AS slice FROM listed JOIN lists USING (n) WHERE {}"
_LISTS = "NOT shadow AND NOT is_similar"
BY = {
    "all": _ITEMS.format("'all'", _LISTS),
    "model": _ITEMS.format("model", _LISTS),
    "arm": _ITEMS.format("experiment || '/' || arm", f"{_LISTS} AND arm IS NOT NULL"),
    "shadow": _ITEMS.format("model", "shadow"),
    "source": _ITEMS.format("unnest(list_distinct(sources))", _LISTS),
    "interest": _ITEMS.format("interest", f"{_LISTS} AND interest IS NOT NULL"),
    "similar": _ITEMS.format("model", "is_similar"),
}
"""Slices by what they are of -> query of the items that count in each."""
LIST_COLUMNS = (
    *("recommendation_id", "received", "user_id", "history", "model"),
    *("experiment", "arm", "shadow", "list_source", "items"),
)
EVENT_COLUMNS = ("event_id", "type", "user_id", "item_id", "time", "received", "recommendation_id")
RESULT = pa.schema(
    {
        "by": pa.string(),
        "slice": pa.string(),
        "name": pa.string(),
        "k": pa.int32(),
        "value": pa.float64(),
        "low": pa.float64(),
        "high": pa.float64(),
        "num_lists": pa.int64(),
        "num_users": pa.int64(),
    }
)
"""One row for each slice, measure and cutoff; low and high bound the 95 % interval over users."""


class OnlineCounts(NamedTuple):
    """What was read."""

    lists: int
    events: int
    named: int
    """Events that follow the list they name."""
    by_user: int
    """Events that follow a list by user and time."""


def read_logs(connection: duckdb.DuckDBPyConnection, store: str, *, types: Sequence[str], window_seconds: float) -> OnlineCounts:
    """Load both logs of a store and find out which lists each event follows.

    Args:
        connection: an empty database.
        store: folder or s3:// address.
        types: types of events that count; empty for all.
        window_seconds: longest time from a list to an event.

    Raises:
        ValueError: there are no lists.
    """
    load_log(connection, impressions_log(store), "shown", LIST_COLUMNS)
    load_log(connection, events_log(store), "happened", EVENT_COLUMNS)
    if not count_of(connection, "SELECT count(*) FROM shown"):
        raise ValueError(f"{store}: no list was logged; serve with an events_dir and impressions=on, which is the default")
    connection.execute("CREATE TABLE numbered AS SELECT row_number() OVER () AS n, * FROM shown")
    connection.execute(
        "CREATE TABLE lists AS SELECT n, recommendation_id, epoch_ms(received) AS t, user_id, model, experiment, arm, shadow, "
        "coalesce(list_source = 'similar', false) AS is_similar, "
        "coalesce('u' || user_id, 'h' || history, 'l' || recommendation_id) AS unit FROM numbered"
    )
    connection.execute(
        "CREATE TABLE listed AS SELECT n, i.item_id, i.position, i.sources, i.interest "
        "FROM (SELECT n, unnest(items) AS i FROM numbered)"
    )
    connection.execute("DROP TABLE numbered; DROP TABLE shown")
    chosen = f"WHERE type IN ({', '.join('?' * len(types))})" if types else ""
    connection.execute(
        "CREATE TABLE events AS SELECT event_id, user_id, item_id, epoch_ms(time) AS t, recommendation_id "
        f"FROM happened {chosen}",
        list(types),
    )
    _attribute(connection, int(window_seconds * 1000))
    queries = ("lists", "events", "named WHERE NOT shadow", "by_user WHERE NOT shadow")
    return OnlineCounts(*(count_of(connection, f"SELECT count(*) FROM {query}") for query in queries))


def _attribute(connection: duckdb.DuckDBPyConnection, window: int) -> None:
    """Make the table `hits`: items of lists that were followed; lists of the shadow count apart."""
    joined = "events e JOIN lists l ON {} JOIN listed i ON i.n = l.n AND i.item_id = e.item_id"
    by_id = joined.format("e.recommendation_id = l.recommendation_id AND coalesce(l.user_id = e.user_id, true)")
    connection.execute(
        f"CREATE TABLE named AS SELECT e.event_id, l.n, l.shadow, e.item_id FROM {by_id} WHERE e.t <= l.t + {window}"
    )
    by_user = joined.format("e.user_id = l.user_id")
    newest = "row_number() OVER (PARTITION BY e.event_id, l.shadow ORDER BY l.t DESC, l.n DESC) = 1"
    connection.execute(
        f"CREATE TABLE by_user AS SELECT e.event_id, l.n, l.shadow, e.item_id FROM {by_user} "
        f"WHERE l.t <= e.t AND e.t <= l.t + {window} "
        f"AND NOT EXISTS (SELECT 1 FROM named d WHERE d.event_id = e.event_id AND d.shadow = l.shadow) QUALIFY {newest}"
    )
    connection.execute(
        "CREATE TABLE hits AS SELECT DISTINCT n, item_id FROM (SELECT n, item_id FROM named UNION ALL FROM "
        "(SELECT n, item_id FROM by_user))"
    )


def evaluate_online(
    connection: duckdb.DuckDBPyConnection, ks: Sequence[int], *, resamples: int, rng: np.random.Generator, most: int
) -> pa.Table:
    """Return HR@k and NDCG@k of all slices, after `read_logs`, as rows of `RESULT`.

    Args:
        connection: the database of the logs.
        ks: cutoffs.
        resamples: bootstrap resamples of the users.
        rng: draws them.
        most: most slices by source and by interest, those with most lists.
    """
    rows: list[dict[str, Any]] = []
    for by, query in BY.items():
        connection.execute(f"CREATE OR REPLACE TABLE sums AS {_sums(query, ks)}")
        sizes = "SELECT slice, sum(lists) FROM sums GROUP BY slice ORDER BY 2 DESC, 1"
        for name, _ in rows_of(connection, f"{sizes} LIMIT {most}"):
            connection.execute(
                "CREATE OR REPLACE TABLE slice AS SELECT row_number() OVER (ORDER BY unit) - 1 AS row, * EXCLUDE (slice, unit) "
                "FROM sums WHERE slice = ? ORDER BY row",
                [name],
            )
            rows += [{"by": by, "slice": name} | row for row in _measure(connection, ks, resamples, rng)]
    return pa.Table.from_pylist(rows, RESULT)


def _sums(items: str, ks: Sequence[int]) -> str:
    """Return the query of counts and sums of measures, by slice and user."""
    gain = "1 / log2(1 + position)"
    each = ", ".join(
        f"min(position) <= {k} AS counts{k}, coalesce(bool_or(hit AND position <= {k}), false) AS hr{k}, "
        f"coalesce(sum({gain}) FILTER (hit AND position <= {k}), 0) AS dcg{k}"
        for k in ks
    )
    of_list = (
        f"SELECT slice, n, count(*) FILTER (hit) AS relevant, {each} FROM (SELECT s.*, h.n IS NOT NULL AS hit "
        f"FROM ({items}) s LEFT JOIN hits h ON h.n = s.n AND h.item_id = s.item_id) GROUP BY slice, n"
    )
    ideal = "list_sum(list_transform(range(1, least(relevant, {k}) + 1), lambda p: 1 / log2(1 + p)))"
    sums = ", ".join(
        f"sum(counts{k}::INT)::DOUBLE AS counts{k}, sum(hr{k}::INT)::DOUBLE AS hr{k}, "
        f"coalesce(sum(dcg{k} / {ideal.format(k=k)}) FILTER (relevant > 0), 0)::DOUBLE AS ndcg{k}"
        for k in ks
    )
    return f"SELECT slice, unit, count(*) AS lists, {sums} FROM ({of_list}) JOIN lists USING (n) GROUP BY slice, unit"


def _measure(
    connection: duckdb.DuckDBPyConnection, ks: Sequence[int], resamples: int, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """Return the measures of the table `slice`, which has a row for each user."""
    num_users = count_of(connection, "SELECT count(*) FROM slice")
    num_lists = count_of(connection, "SELECT sum(lists) FROM slice")
    names = ", ".join(f"counts{k}, hr{k}, ndcg{k}" for k in ks)

    def columns(rows: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b F"]:
        found = connection.execute(
            f"SELECT {names} FROM slice WHERE row BETWEEN ? AND ? ORDER BY row", [int(rows[0]), int(rows[-1])]
        )
        return np.stack([*found.fetchnumpy().values()], axis=1)

    summed = resample_users(np.arange(num_users), columns, 0, resamples=resamples, rng=rng)
    for place, k in enumerate(ks):
        counts, drawn = summed.total[3 * place], summed.drawn[:, 3 * place]
        for offset, name in ((1, "hr"), (2, "ndcg")):
            if counts:
                column = 3 * place + offset
                means = summed.drawn[:, column] / np.where(drawn > 0, drawn, np.nan)
                low, high = np.nanpercentile(means, INTERVAL)
                value = {"value": float(summed.total[column] / counts), "low": float(low), "high": float(high)}
                yield {"name": name, "k": k, "num_lists": num_lists, "num_users": num_users} | value


def online_text(table: pa.Table) -> str:
    """Return the result as a table for people."""
    lines = [f"{'by':9} {'slice':32} {'':9} {'value':>7}  {'95 % interval':16} {'lists':>9} {'users':>9}"]
    for row in table.to_pylist():
        measure, interval = f"{row['name']}@{row['k']}", f"{row['low']:.4f}-{row['high']:.4f}"
        lines.append(
            f"{row['by']:9} {row['slice'][:32]:32} {measure:9} {row['value']:7.4f}  {interval:16} {row['num_lists']:9,} "
            f"{row['num_users']:9,}"
        )
    return "\n".join(lines)
