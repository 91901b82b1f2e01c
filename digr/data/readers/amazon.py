"""Amazon Reviews of 2014, 2018 and 2023: reviews, metadata and rating-only files.

The metadata of 2014 are Python dicts, one per line. In 2023 an item is a `parent_asin`: its variants share texts and price.
"""

import re
from collections.abc import Callable

from digr.data.importing.rules import Reading, Rule, one
from digr.data.importing.tables import Table

REVIEWS = one(user_id="reviewerID", item_id="asin", rating="overall", timestamp="unixReviewTime")
META_2014 = one(
    item_id="asin", title="title", description="description", brand="brand", categories="categories", price="price", image="imUrl"
)
META_2018 = META_2014 | one(categories="category", image=("imageURLHighRes", "imageURL", "image"))
REVIEWS_2023 = one(user_id="user_id", item_id="parent_asin", rating="rating", timestamp="timestamp")
META_2023 = one(
    item_id="parent_asin",
    title="title",
    description=("description", "features"),
    brand="store",
    categories=("categories", "main_category"),
    price="price",
    image="images",
)
ASIN, REVIEWER = r"[A-Z0-9]{10}", r"A[A-Z0-9]{9,24}"


def _order(table: Table, *patterns: str) -> bool:
    """Whether the first columns of a table without a header look like ids in this order."""
    rows = [row for row in table.sample[:100] if all(row)]
    return (
        bool(rows)
        and len(table.columns) == 4
        and all(
            re.fullmatch(pattern, row[place] or "")
            for row in rows
            for place, pattern in enumerate((*patterns, r"[0-5](\.\d)?", r"\d{9,10}"))
        )
    )


def _lacks(*columns: str) -> Callable[[Table], bool]:
    """Accept tables without some columns."""
    return lambda table: not set(columns) & set(table.columns)


RULES = (
    Rule(Reading("amazon-2014", "interactions", REVIEWS), needs=("reviewerID", "asin", "unixReviewTime")),
    Rule(Reading("amazon-2018", "items", META_2018), needs=("asin", "title", "category"), accepts=_lacks("item_id")),
    Rule(Reading("amazon-2018", "items", META_2018), needs=("asin", "title", "imageURLHighRes"), accepts=_lacks("item_id")),
    Rule(
        Reading("amazon-2014", "items", META_2014),
        needs=("asin", "categories"),
        accepts=_lacks("category", "imageURLHighRes", "parent_asin", "item_id"),
    ),
    Rule(Reading("amazon-2023", "interactions", REVIEWS_2023), needs=("user_id", "parent_asin", "rating", "timestamp")),
    Rule(Reading("amazon-2023", "items", META_2023), needs=("parent_asin", "title", "store")),
    Rule(
        Reading("amazon-2014", "interactions", one(user_id="column1", item_id="column2", rating="column3", timestamp="column4")),
        accepts=lambda table: _order(table, REVIEWER, ASIN),
    ),
    Rule(
        Reading("amazon-2018", "interactions", one(item_id="column1", user_id="column2", rating="column3", timestamp="column4")),
        accepts=lambda table: _order(table, ASIN, REVIEWER),
    ),
)
LAYOUTS = ()
