"""Reasons for a recommendation: the item's trusted interests that the history, or the user, has too.

Two interests match if they have the same canonical interest at the finest grain, so different wordings match. In a run without
canonical interests they match if they are equal phrases. A reason is always the item's own phrase.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from digr import artifacts
from digr.artifacts import Store
from digr.interests.canonical import CanonicalInterests, find_groups, find_sorted, load_canonical, read_alike
from digr.policy.tasks import INTEREST_SEPARATOR
from digr.tables import flat_interests


class ItemInterests(NamedTuple):
    """Trusted interests of all items, grouped by item, strongest first."""

    texts: pa.Array
    """F interests as the miner wrote them."""
    keys: Int[np.ndarray, " F"]
    """Equal for interests that match: the number of their canonical interest, or for those that have none a further number
    for each phrase."""
    offsets: Int[np.ndarray, " N1"]
    """Interests of item i are rows `offsets[i]` up to `offsets[i + 1]`."""
    canonical: CanonicalInterests | None = None
    """The canonical interests of `keys`; None if the run has none."""
    others: pa.Array = pa.array([], pa.string())
    """Phrases without a canonical interest, in lower case, ascending; their keys come after those of the canonical ones."""


def index_interests(labels: pa.Table, item_ids: pa.Array, canonical: CanonicalInterests | None = None) -> ItemInterests:
    """Index the trusted interests of items, strongest by the labelers' probability; rank breaks ties.

    Args:
        labels: rows of `interest_labels` as `flat_interests` makes them; rows of users, of other items and with label 0 are
            ignored.
        item_ids: N items; their order defines places.
        canonical: of the run; items that were added later may have interests that it lacks.
    """
    texts, offsets = sort_interests(labels, item_ids)
    words = read_alike(texts).dictionary_encode()
    is_other = find_groups(canonical, words.dictionary) < 0 if canonical else np.ones(len(words.dictionary), bool)
    others = words.dictionary.filter(pa.array(is_other))
    others = others.take(pc.sort_indices(others))
    keys = keys_of(words.dictionary, canonical, others)[words.indices.to_numpy(zero_copy_only=False)]
    return ItemInterests(texts, keys.astype(np.int32), offsets, canonical, others)


def sort_interests(labels: pa.Table, item_ids: pa.Array) -> tuple[pa.Array, Int[np.ndarray, " N1"]]:
    """Return the texts and the offsets of `index_interests`."""
    trusted = labels.filter(pc.and_(pc.equal(labels["owner"], "item"), pc.equal(labels["label"], 1)))
    place = pc.index_in(trusted["owner_id"], value_set=item_ids)
    known = trusted.append_column("place", place).filter(pc.is_valid(place))
    known = known.sort_by([("place", "ascending"), ("probability", "descending"), ("rank", "ascending")])
    offsets = np.searchsorted(known["place"].to_numpy(), np.arange(len(item_ids) + 1))
    return known["interest"].combine_chunks(), offsets


def keys_of(texts: pa.Array, canonical: CanonicalInterests | None, others: pa.Array) -> Int[np.ndarray, " B"]:
    """Return the key of each text; one that is in neither `canonical` nor `others` gets a further key, equal for equal texts.

    Args:
        others: as in `ItemInterests`.
    """
    num = 0 if canonical is None else len(canonical.names)
    words = read_alike(texts)
    group = np.full(len(texts), -1) if canonical is None else find_groups(canonical, words)
    other = find_sorted(others, words)
    fresh = words.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    return np.where(group >= 0, group, num + np.where(other >= 0, other, len(others) + fresh))


def load_item_interests(store: Store, item_ids: pa.Array) -> ItemInterests:
    """Index a run's trusted interests for the given order of items."""
    labels = artifacts.read_table(store, "interest_labels", ["owner", "owner_id", "interests"], owner=["item"])
    return index_interests(flat_interests(labels), item_ids, load_canonical(store))


def shared_interests(
    interests: ItemInterests,
    history: Sequence[int] | Int[np.ndarray, " T"],
    items: Sequence[int] | Int[np.ndarray, " M"],
    own: str | None = None,
) -> list[list[str]]:
    """Return each item's interests that an item of the history, or the user, has too, strongest first.

    If an item has several phrases of one canonical interest, only the strongest is returned.

    Args:
        history: places of the history's items in the indexed order.
        items: places of the recommended items.
        own: the user's interests as the prompt showed them, see `ShownInterests`.
    """
    wanted = interests.keys[rows_of(interests, np.asarray(history, np.int64))[0]]
    rows, owner = rows_of(interests, np.asarray(items, np.int64))
    shared = np.isin(interests.keys[rows], wanted)
    if own:
        told, said = read_alike(pa.array(own.split(INTEREST_SEPARATOR))), read_alike(interests.texts.take(pa.array(rows)))
        shared |= np.asarray(pc.is_in(said, value_set=told))
        if interests.canonical is not None:
            shared |= np.isin(interests.keys[rows], find_groups(interests.canonical, told))
    rows, owner = rows[shared], owner[shared]
    keys = interests.keys[rows].astype(np.int64)
    pair = owner * (int(keys.max(initial=0)) + 1) + keys
    first = np.sort(np.unique(pair, return_index=True)[1])
    texts = interests.texts.take(pa.array(rows[first])).to_pylist()
    ends = np.searchsorted(owner[first], np.arange(len(items) + 1))
    return [texts[start:end] for start, end in itertools.pairwise(ends)]


def names_of(interests: ItemInterests, rows: Int[np.ndarray, " P"]) -> list[str]:
    """Return the names of the canonical interests of some rows; an interest without one is its own name."""
    texts = interests.texts.take(pa.array(rows)).to_pylist()
    if interests.canonical is None:
        return texts
    names, keys = interests.canonical.names, interests.keys[rows].tolist()
    return [names[key].as_py() if key < len(names) else text for key, text in zip(keys, texts, strict=True)]


def rows_of(interests: ItemInterests, items: Int[np.ndarray, " M"]) -> tuple[Int[np.ndarray, " P"], Int[np.ndarray, " P"]]:
    """Return the rows of all interests of some items, item by item, and the index of each row's item."""
    starts, counts = interests.offsets[items], interests.offsets[items + 1] - interests.offsets[items]
    owner = np.repeat(np.arange(len(items)), counts)
    return np.arange(counts.sum()) + (starts - (counts.cumsum() - counts))[owner], owner
