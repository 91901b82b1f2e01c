"""Find items by what they are for: those of the canonical interests that a query names."""

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from digr.policy.reasons import ItemInterests
from digr.serving.facts import find_words


def search_interests(
    interests: ItemInterests, words: pa.Array, popularity: Int[np.ndarray, " N"], query: str, limit: int
) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " M"]]:
    """Return the first `limit` items that have a canonical interest which a query names, and which interest that is of each.

    A query names a canonical interest if one of its phrases, its name among them, has words that begin with every word of the
    query. Items of an interest with a phrase that begins with the query itself stand first, then the more popular ones. One look
    at the phrases and one at the numbers of the items' interests is all it takes, and few items are sorted.

    Args:
        words: of the run's phrases, see `words_of`.
        popularity: place of each item among all, 0 for the most popular.
    """
    canonical = interests.canonical
    phrase, whole = find_words(words, query)
    if canonical is None or not len(phrase):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    num = len(canonical.names)
    named = np.zeros(num + 1, np.int8)  # behind the canonical interests, all that are none
    np.maximum.at(named, canonical.group[phrase], 1 + whole.astype(np.int8))
    level = named[np.minimum(interests.keys, num)]
    rows = np.flatnonzero(level)
    item = np.searchsorted(interests.offsets, rows, side="right") - 1
    place = popularity[item] - level[rows] * np.int64(len(popularity))
    most = limit * int(np.diff(interests.offsets).max())  # rows of at least `limit` items
    some = np.argpartition(place, most - 1)[:most] if 0 < most < len(rows) else np.arange(len(rows))
    best = some[np.lexsort((some, place[some]))]
    first = np.sort(np.unique(item[best], return_index=True)[1])  # of each item its best interest, the strongest of several
    chosen = best[first][:limit]
    return item[chosen], interests.keys[rows[chosen]]
