"""Find items by canonical interests: those whose phrases match a query."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from digr.policy.reasons import ItemInterests, rows_of
from digr.serving.mapped import map_array, save_array
from digr.serving.word_index import WordIndex, build_word_index, find_words, query_words, words_of


class InterestIndex(NamedTuple):
    """The run's items by canonical interest, and the phrases of these interests."""

    phrases: WordIndex
    """Phrases of interests with items; those whose most popular item is more popular come first."""
    group: Int[np.ndarray, " P"]
    """Canonical interest of each of these phrases."""
    carriers: Int[np.ndarray, " C"]
    """Items of all canonical interests, grouped by interest, the most popular first."""
    offsets: Int[np.ndarray, " K1"]
    """Items of interest i are `carriers[offsets[i]:offsets[i + 1]]`."""
    later_words: pa.Array
    """Words of the phrases of added items' canonical interests."""
    later_group: Int[np.ndarray, " p"]
    """Canonical interest of each of these phrases."""
    num_items: int
    """Number of the run's items; added ones come after them."""


def save_interest_index(folder: Path, interests: ItemInterests, popularity: Int[np.ndarray, " N"]) -> None:
    """Write the index of items' canonical interests for `map_interest_index`; nothing if there are none."""
    canonical = interests.canonical
    if canonical is None:
        return
    num = len(canonical.names)
    rows = np.flatnonzero(interests.keys < num)
    group, item = interests.keys[rows], np.searchsorted(interests.offsets, rows, side="right") - 1
    order = np.lexsort((popularity[item], group))
    group, item = group[order], item[order].astype(np.int32)
    is_first = np.append(True, (np.diff(group) != 0) | (np.diff(item) != 0))[: len(order)]
    group, item = group[is_first], item[is_first]
    offsets = np.searchsorted(group, np.arange(num + 1))
    has_items = np.flatnonzero(np.diff(offsets)[canonical.group] > 0)
    owner = canonical.group[has_items]
    order = np.lexsort((owner, popularity[item[offsets[owner]]]))
    build_word_index(folder / "phrases.sqlite", [canonical.phrases.take(pa.array(has_items[order]))])
    save_array(folder, "phrase-group", owner[order].astype(np.int32))
    save_array(folder, "carriers", item)
    save_array(folder, "carrier-offsets", offsets.astype(np.int64))


def map_interest_index(folder: Path, interests: ItemInterests, num_items: int) -> InterestIndex | None:
    """Map an index of `save_interest_index`; None if the run has no canonical interests.

    Args:
        interests: of the run's items, then of the added ones.
        num_items: number of the run's items.
    """
    canonical = interests.canonical
    if canonical is None:
        return None
    owned = np.unique(interests.keys[interests.offsets[num_items] :])
    phrases = np.flatnonzero(np.isin(canonical.group, owned)) if len(owned) else np.zeros(0, np.int64)
    return InterestIndex(
        phrases=WordIndex(folder / "phrases.sqlite"),
        group=map_array(folder, "phrase-group"),
        carriers=map_array(folder, "carriers"),
        offsets=map_array(folder, "carrier-offsets"),
        later_words=words_of(canonical.phrases.take(pa.array(phrases))),
        later_group=canonical.group[phrases],
        num_items=num_items,
    )


def search_interests(
    index: InterestIndex,
    interests: ItemInterests,
    popularity: Int[np.ndarray, " N"],
    query: str,
    limit: int,
    *,
    listed: Bool[np.ndarray, " N"] | None = None,
) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " M"]]:
    """Return the first `limit` items with a canonical interest that matches a query, and the matching interest of each.

    A query matches a canonical interest if every word of the query begins some word of one of its phrases, the name included.
    Items of interests with a phrase that begins with the query come first, then more popular items. An item's matching
    interest is its strongest one of those that begin with the query, if there are such.

    Args:
        popularity: rank of each item, 0 for the most popular.
        listed: items that may be found; None for all.
    """
    words = query_words(query)
    later, later_whole = find_words(index.later_words, query)
    most = limit if listed is None else limit + int((~listed).sum())  # so that enough are left
    found, named = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for whole in (True, False):
        of_later = index.later_group[later[later_whole] if whole else later]
        groups, items = _first_items(index, popularity, words, most, whole=whole)
        items = np.concatenate([items, _added_items(index, interests, of_later)])
        items = np.unique(items[~np.isin(items, found)])
        items = items if listed is None else items[listed[items]]
        items = items[np.argsort(popularity[items])][: limit - len(found)]
        matching = np.concatenate([groups, of_later])
        found = np.concatenate([found, items])
        named = np.concatenate([named, _strongest(interests, items, matching)])
    return found, named


def _first_items(
    index: InterestIndex, popularity: Int[np.ndarray, " N"], words: Sequence[str], limit: int, *, whole: bool
) -> tuple[Int[np.ndarray, " g"], Int[np.ndarray, " M"]]:
    """Return the matching interests that the first `limit` items of the run may have, and items that include these.

    Each interest brings its most popular item. So the first `limit` items are at least as popular as the last of `limit`
    different ones of these, and interests whose most popular item is less popular bring none of them.
    """
    groups, last = np.zeros(0, np.int64), len(popularity)
    for rows in index.phrases.pages(words, whole=whole, size=limit + 32):
        groups = np.concatenate([groups, index.group[rows]])
        best = popularity[index.carriers[index.offsets[groups]]]
        ranks = np.unique(best)
        if len(ranks) >= limit and best[-1] > ranks[limit - 1]:
            last = ranks[limit - 1]
            groups = groups[best <= last]
            break
    groups = np.unique(groups)
    spans = [index.carriers[index.offsets[one] : min(index.offsets[one] + limit, index.offsets[one + 1])] for one in groups]
    items = np.concatenate([np.zeros(0, np.int64), *spans])
    return groups, items[popularity[items] <= last]


def _added_items(index: InterestIndex, interests: ItemInterests, groups: Int[np.ndarray, " g"]) -> Int[np.ndarray, " M"]:
    """Return the added items that have one of some interests."""
    start = int(interests.offsets[index.num_items])
    rows = start + np.flatnonzero(np.isin(interests.keys[start:], groups))
    return np.unique(np.searchsorted(interests.offsets, rows, side="right") - 1)


def _strongest(interests: ItemInterests, items: Int[np.ndarray, " M"], groups: Int[np.ndarray, " g"]) -> Int[np.ndarray, " M"]:
    """Return each item's strongest interest of some, of which every item has one."""
    rows, owner = rows_of(interests, items)
    keys = interests.keys[rows]
    is_wanted = np.isin(keys, groups)
    return keys[is_wanted][np.unique(owner[is_wanted], return_index=True)[1]].astype(np.int64)
