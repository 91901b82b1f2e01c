"""Whether ranked lists serve the interest behind the target, not only the exact item, and how many interests they show.

An item serves the target's interest if it carries one of the target's trusted canonical interests, of the finest grain. The
examples that are measured are those whose target has one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, Int

from digr import artifacts
from digr.artifacts import Store
from digr.data.ids import IdIndex
from digr.data.sequences import ranges
from digr.interests.canonical import find_groups, load_canonical
from digr.tables import flat_interests

MEASURES = ("interest_hr", "interest_ndcg", "interest_diversity")


class CarriedInterests(NamedTuple):
    """The trusted canonical interests of N items; P pairs of an item and one of K interests, each once."""

    items: IdIndex
    start: Int[np.ndarray, " N1"]
    """Item i has the interests `group[start[i]:start[i + 1]]`, ascending."""
    group: Int[np.ndarray, " P"]
    first: Int[np.ndarray, " K1"]
    """Interest g is carried by the items `carrier[first[g]:first[g + 1]]`."""
    carrier: Int[np.ndarray, " P"]

    def of(self, item: Int[np.ndarray, " C"]) -> tuple[Int[np.ndarray, " Q"], Int[np.ndarray, " Q"]]:
        """Return the interests of C items, each with the number of its item among them; item -1 has none."""
        length = np.where(item >= 0, self.start[item + 1] - self.start[item], 0)
        return np.repeat(np.arange(len(item)), length), self.group[ranges(self.start[item], length)]


def carried_interests(items: IdIndex, item: Int[np.ndarray, " Q"], group: Int[np.ndarray, " Q"]) -> CarriedInterests:
    """Gather pairs of an item's index and an interest, counted from 0; doubles count once."""
    num_groups = int(group.max(initial=-1)) + 1
    item, group = np.divmod(np.unique(item.astype(np.int64) * max(num_groups, 1) + group), max(num_groups, 1))
    order = np.argsort(group, kind="stable")
    start = np.searchsorted(item, np.arange(len(items) + 1))
    first = np.searchsorted(group[order], np.arange(num_groups + 1))
    return CarriedInterests(items, start, group, first, item[order])


def read_carried_interests(store: Store, items: IdIndex) -> CarriedInterests | None:
    """Read the trusted interests of a run's items; None if the run has no canonical interests."""
    canonical = load_canonical(store)
    if canonical is None:
        return None
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for batch in artifacts.iter_table(store, "interest_labels", ["owner", "owner_id", "interests"]):
        flat = flat_interests(batch.filter(pc.equal(batch["owner"], "item")))
        flat = flat.filter(pc.equal(flat["label"], 1))
        group = find_groups(canonical, flat["interest"].combine_chunks())
        item = items.find_all(flat["owner_id"], "interest_labels")
        found.append((item[group >= 0], group[group >= 0]))
    return carried_interests(items, *(np.concatenate(parts) for parts in zip(*found, strict=True)))


def has_interest(targets: pa.Array, interests: CarriedInterests) -> Bool[np.ndarray, " B"]:
    """Mark the targets that have a trusted interest."""
    target = interests.items.find(targets)
    return interests.start[target + 1] > interests.start[target]


def interest_values(
    lists: pa.ListArray, targets: pa.Array, interests: CarriedInterests, ks: Sequence[int]
) -> Float32[np.ndarray, "B M"]:
    """Return the measures of lists, best item first: by name in the order of `MEASURES`, then by cutoff.

    `interest_hr`: 1 if one of the first k items serves the target's interest. `interest_ndcg`: NDCG@k of the items that serve
    it, each of gain 1; the ideal list has as many as there are, at most k. `interest_diversity`: different interests among all
    interests of the first k items, in [0, 1]. All are 0 for a target without interests, and for a list without any.
    """
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    row = np.repeat(np.arange(len(lists)), lengths)
    place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    target = interests.items.find(targets)
    at, group = interests.of(interests.items.find(lists.flatten()))
    num_groups = max(len(interests.first) - 1, 1)
    key = row[at] * num_groups + group
    owner, wanted = interests.of(target)
    serves = np.bincount(at[np.isin(key, owner * num_groups + wanted)], minlength=len(row)) > 0
    ideal = np.cumsum(1 / np.log2(np.arange(max(ks)) + 2))
    num_serving = _num_serving(interests, owner, wanted, len(lists), max(ks))
    by_name: dict[str, list[np.ndarray]] = {name: [] for name in MEASURES}
    for k in ks:
        inside = serves & (place < k)
        gain = np.bincount(row[inside], 1 / np.log2(place[inside] + 2), len(lists))
        by_name["interest_hr"].append(gain > 0)
        by_name["interest_ndcg"].append(gain / ideal[np.clip(num_serving, 1, k) - 1])
        shown = key[place[at] < k]
        different = np.bincount(np.unique(shown) // num_groups, minlength=len(lists))
        diversity = different / np.maximum(np.bincount(shown // num_groups, minlength=len(lists)), 1)
        by_name["interest_diversity"].append(diversity * (np.bincount(owner, minlength=len(lists)) > 0))
    return np.stack([value for name in MEASURES for value in by_name[name]], axis=1).astype(np.float32)


def _num_serving(
    interests: CarriedInterests, owner: Int[np.ndarray, " Q"], wanted: Int[np.ndarray, " Q"], num: int, enough: int
) -> Int[np.ndarray, " B"]:
    """Count the items that carry any interest of each of `num` targets; no more than `enough` need be counted of an interest."""
    length = np.minimum(interests.first[wanted + 1] - interests.first[wanted], enough)
    carrier = interests.carrier[ranges(interests.first[wanted], length)]
    pair = np.unique(np.repeat(owner, length) * max(len(interests.items), 1) + carrier)
    return np.bincount(pair // max(len(interests.items), 1), minlength=num)
