"""Find items by canonical interests: those whose phrases match a query."""

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from digr.policy.reasons import ItemInterests
from digr.serving.facts import find_words


def search_interests(
    interests: ItemInterests,
    words: pa.Array,
    popularity: Int[np.ndarray, " N"],
    query: str,
    limit: int,
    *,
    listed: Bool[np.ndarray, " N"] | None = None,
) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " M"]]:
    """Return the first `limit` items with a canonical interest that matches a query, and the matching interest of each.

    A query matches a canonical interest if every word of the query begins some word of one of its phrases, the name included.
    Items of interests with a phrase that begins with the query come first, then more popular items. The search passes once
    over the phrases and once over the interests of items, and sorts few items.

    Args:
        words: words of the run's phrases, see `words_of`.
        popularity: rank of each item, 0 for the most popular.
        listed: items that may be found; None for all.
    """
    canonical = interests.canonical
    phrase, whole = find_words(words, query)
    if canonical is None or not len(phrase):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    num = len(canonical.names)
    named = np.zeros(num + 1, np.int8)  # the last entry is for interests without a canonical one
    np.maximum.at(named, canonical.group[phrase], 1 + whole.astype(np.int8))
    level = named[np.minimum(interests.keys, num)]
    rows = np.flatnonzero(level)
    item = np.searchsorted(interests.offsets, rows, side="right") - 1
    if listed is not None:
        rows, item = rows[listed[item]], item[listed[item]]
    place = popularity[item] - level[rows] * np.int64(len(popularity))
    most = limit * int(np.diff(interests.offsets).max())  # rows of at least `limit` items
    some = np.argpartition(place, most - 1)[:most] if 0 < most < len(rows) else np.arange(len(rows))
    best = some[np.lexsort((some, place[some]))]
    first = np.sort(np.unique(item[best], return_index=True)[1])  # each item's first match, which is its strongest interest
    chosen = best[first][:limit]
    return item[chosen], interests.keys[rows[chosen]]
