"""Describe data before a run: columns and texts of items, lengths of histories, and the settings that suit them."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import py3langid
from duckdb import DuckDBPyConnection

from digr.data.database import rows_of

SAMPLED_TEXTS = 300
"""Number of items whose language is guessed."""
ROUND_LENGTHS = (10, 20, 50, 100, 200)
"""Values of max_history that can be suggested."""
WORTH_KEEPING = 0.7
"""A core is suggested if its users and items have at least this share of the interactions."""


class Suggestions(NamedTuple):
    """Settings that suit the data."""

    core: int
    max_history: int


def describe_items(connection: DuckDBPyConnection) -> dict[str, Any]:
    """Return the share of the prepared items that has each column, the length of texts, and their languages.

    Languages are guessed from a sample of the items, and their shares refer to that sample.
    """
    columns = ("description", "brand", "categories", "price", "image_uri")
    shares = ", ".join(f"count(r.{column}) / count(*)" for column in columns)
    words = "median(len(string_split(concat_ws(' ', r.title, r.description), ' ')))"
    items = "FROM items_read r JOIN catalogue c ON r.row = c.row"
    *found, median_words = rows_of(connection, f"SELECT {shares}, {words} {items}")[0]
    same = rows_of(connection, f"SELECT count(*) - count(DISTINCT (r.title, r.description)) {items}")[0][0]
    currencies = rows_of(
        connection, f"SELECT r.currency, count(*) {items} WHERE r.price IS NOT NULL GROUP BY 1 ORDER BY 2 DESC LIMIT 5"
    )
    texts = rows_of(
        connection,
        f"SELECT concat_ws('. ', r.title, left(r.description, 300)) {items} ORDER BY hash(r.item_id) LIMIT {SAMPLED_TEXTS}",
    )
    languages = Counter(py3langid.classify(text)[0] for (text,) in texts)
    return {
        "share_with": {column: round(share, 4) for column, share in zip(columns, found, strict=True)},
        "median_words": int(median_words),
        "items_with_the_text_of_another": same,
        "prices_by_currency": {name or "unknown": count for name, count in currencies},
        "language_guess": {name: round(count / len(texts), 3) for name, count in languages.most_common(3)},
    }


def describe_interactions(connection: DuckDBPyConnection) -> dict[str, Any]:
    """Return the first and last day of the interactions, and their number per user and per item: p10, p50, p90, maximum."""
    first, last = rows_of(connection, f"SELECT {_day('min(time)')}, {_day('max(time)')} FROM interactions")[0]
    facts: dict[str, Any] = {"first_day": first, "last_day": last} if first else {}
    for side in ("user", "item"):
        counts = rows_of(
            connection,
            f"SELECT quantile_disc(n, [0.1, 0.5, 0.9]), max(n) FROM "
            f"(SELECT count(*) AS n FROM interactions GROUP BY {side}_number)",
        )[0]
        facts[f"interactions_per_{side}"] = dict(zip(("p10", "p50", "p90", "most"), [*counts[0], counts[1]], strict=True))
    return facts


def _day(milliseconds: str) -> str:
    return f"strftime(make_timestamp_ms({milliseconds}), '%Y-%m-%d')"


def suggest(connection: DuckDBPyConnection, facts: Mapping[str, Any], one_user_in: int = 1) -> Suggestions:
    """Suggest a core and a length of histories from the prepared interactions.

    The core is the largest of 5, 3 and 2 that keeps about 70 % of the interactions. The length is the smallest round one that
    nine of ten users do not exceed, at most 200.

    Args:
        connection: the database of prepared rows, without a core.
        facts: the result of `describe_interactions`.
        one_user_in: one user in so many was read, so an item really has that many times its interactions.
    """
    users, items = (f"(SELECT {side}_number, count(*) AS of_{side} FROM interactions GROUP BY 1)" for side in ("user", "item"))
    core = 0
    for size in (5, 3, 2):
        share = rows_of(
            connection,
            f"SELECT count(*) FILTER (of_user >= {size} AND of_item * {one_user_in} >= {size}) / count(*) FROM interactions "
            f"JOIN {users} USING (user_number) JOIN {items} USING (item_number)",
        )[0][0]
        if share >= WORTH_KEEPING:
            core = size
            break
    usual = facts["interactions_per_user"]["p90"]
    return Suggestions(core, next((length for length in ROUND_LENGTHS if length >= usual), ROUND_LENGTHS[-1]))


def sample_images(connection: DuckDBPyConnection, num_images: int) -> list[str]:
    """Draw the addresses of some images."""
    query = f"SELECT image_uri FROM items_read WHERE image_uri IS NOT NULL ORDER BY hash(item_id) LIMIT {int(num_images)}"
    return [uri for (uri,) in rows_of(connection, query)]


def example_histories(connection: DuckDBPyConnection, num_users: int = 5, num_items: int = 6) -> list[dict[str, Any]]:
    """Draw some users with the titles of their newest items, oldest first."""
    rows = rows_of(
        connection,
        f"SELECT o.user_id, list(r.title ORDER BY o.position) FROM ordered o JOIN "
        f"(SELECT DISTINCT user_number FROM ordered ORDER BY hash(user_number) LIMIT {num_users}) USING (user_number) "
        f"JOIN known_items k USING (item_number) JOIN items_read r ON r.row = k.row GROUP BY o.user_id ORDER BY o.user_id",
    )
    return [{"user_id": user, "interactions": len(titles), "titles": titles[-num_items:]} for user, titles in rows]


def description_text(facts: Mapping[str, Any], histories: Sequence[Mapping[str, Any]]) -> str:
    """Return facts as aligned lines, and histories as lists of titles."""
    lines = [f"{name.replace('_', ' '):<34} {_value(value)}" for name, value in facts.items() if value not in ({}, None)]
    for row in histories:
        lines += ["", f"user {row['user_id']}, {row['interactions']} interactions, the newest last:"]
        lines += [f"  - {title[:100]}" for title in row["titles"]]
    return "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(inner)}" for name, inner in value.items())
    if isinstance(value, float):
        return f"{100 * value:.1f} %" if math.isfinite(value) and 0 <= value <= 1 else f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
