"""Bounded lists of weighted neighbours, one per item, and their pooling over a history.

A source of candidates has a list per item, for example of items that follow it, co-occur with it, or have similar texts. A
request pools the lists of its history's items, so its cost depends on their length, not on the catalogue.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int

from digr.data.sequences import ranges


@dataclass(frozen=True)
class HistoryItems:
    """The concatenated histories of B requests, oldest first, F items in all."""

    item: Int[np.ndarray, " F"]
    """Places in the catalogue."""
    start: Int[np.ndarray, " B1"]
    """Request b has `item[start[b]:start[b + 1]]`."""

    @cached_property
    def request(self) -> Int[np.ndarray, " F"]:
        """Return the request of each item."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))

    @cached_property
    def age(self) -> Int[np.ndarray, " F"]:
        """Return each item's place from the end of its history, 0 for the last item."""
        return self.start[1:][self.request] - 1 - np.arange(len(self.item))

    @cached_property
    def last(self) -> Int[np.ndarray, " B"]:
        """Return the newest item of each history; -1 for an empty one."""
        empty = self.start[1:] == self.start[:-1]
        return np.where(empty, -1, self.item[np.where(empty, 0, self.start[1:] - 1)] if len(self.item) else -1)


def history_items(items: Int[np.ndarray, " F"], start: Int[np.ndarray, " B1"], max_history: int) -> HistoryItems:
    """Keep the newest `max_history` known items of each history.

    Args:
        items: places; -1 for an unknown item, which is left out.
        start: start of each history in `items`; the last entry is the end.
    """
    known = items >= 0
    before = np.concatenate([[0], np.cumsum(known)])[start]
    length = np.minimum(np.diff(before), max_history)
    return HistoryItems(
        items[known][ranges(before[1:] - length, length)], np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
    )


class Neighbours(NamedTuple):
    """Lists of N items: item i has the places `item[start[i]:start[i + 1]]`, largest weight first."""

    start: Int[np.ndarray, " N1"]
    item: Int[np.ndarray, " P"]
    weight: Float32[np.ndarray, " P"]


def join_lists(parts: Sequence[Neighbours]) -> Neighbours:
    """Concatenate lists."""
    ends = np.concatenate([[0], np.cumsum([len(part.item) for part in parts])])
    starts = [np.zeros(1, np.int64), *(part.start[1:] + end for part, end in zip(parts, ends[:-1], strict=True))]
    items = np.concatenate([np.zeros(0, np.int32), *(part.item for part in parts)])
    return Neighbours(np.concatenate(starts), items, np.concatenate([np.zeros(0, np.float32), *(part.weight for part in parts)]))


def one_list(items: Int[np.ndarray, " P"]) -> Neighbours:
    """Return the list of one request, best first, with equal weights."""
    return Neighbours(np.array([0, len(items)]), items.astype(np.int32), np.ones(len(items), np.float32))


def from_lists(lists: pa.ListArray) -> Neighbours:
    """Read the column of a source in `item_neighbours`."""
    start = np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False))])
    place, weight = lists.flatten().flatten()
    return Neighbours(start.astype(np.int64), place.to_numpy(), weight.to_numpy())


def to_lists(neighbours: Neighbours) -> pa.ListArray:
    """Write lists as a column of `item_neighbours`."""
    kind = pa.struct([pa.field("place", pa.int32(), False), pa.field("weight", pa.float32(), False)])
    arrays = [pa.array(neighbours.item, pa.int32()), pa.array(neighbours.weight, pa.float32())]
    return pa.ListArray.from_arrays(pa.array(neighbours.start, pa.int32()), pa.StructArray.from_arrays(arrays, fields=list(kind)))


def heaviest(
    row: Int[np.ndarray, " P"], item: Int[np.ndarray, " P"], weight: Float32[np.ndarray, " P"], num_rows: int, most: int
) -> Neighbours:
    """Keep the items of largest weight of each row; equal weights keep their order."""
    # row and weight are packed into one number, because a sort by several columns takes ten times as long
    bits = (np.asarray(weight, np.float32) + np.float32(0)).view(np.uint32)  # -0 becomes 0
    falling = np.where(bits >> 31, bits, ~bits & np.uint32(0x7FFFFFFF))
    order = np.argsort(np.asarray(row, np.uint64) << np.uint64(32) | falling, kind="stable")
    counts = np.bincount(row, minlength=num_rows)
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = order[place < most]
    start = np.concatenate([[0], np.cumsum(np.minimum(counts, most))])
    return Neighbours(start.astype(np.int64), item[kept].astype(np.int32), weight[kept].astype(np.float32))


class ItemWeights(NamedTuple):
    """Weights of distinct (request, item) pairs, sorted by request and item."""

    key: Int[np.ndarray, " P"]
    """Key of each pair: request times the size of the catalogue, plus the item's place."""
    weight: Float32[np.ndarray, " P"]
    num_items: int

    def of(self, request: Int[np.ndarray, " C"], item: Int[np.ndarray, " C"]) -> Float32[np.ndarray, " C"]:
        """Return the weight of each pair, 0 for unknown pairs."""
        if not len(self.key):
            return np.zeros(len(item), np.float32)
        wanted = request * self.num_items + item
        at = np.minimum(np.searchsorted(self.key, wanted), len(self.key) - 1)
        return np.where(self.key[at] == wanted, self.weight[at], np.float32(0))

    def best(self, num_requests: int, most: int) -> Neighbours:
        """Return each request's items of largest weight."""
        request, item = np.divmod(self.key, self.num_items)
        return heaviest(request, item, self.weight, num_requests, most)


def sum_weights(
    request: Int[np.ndarray, " P"], item: Int[np.ndarray, " P"], weight: Float32[np.ndarray, " P"], num_items: int
) -> ItemWeights:
    """Sum the weights of equal pairs."""
    key = request * num_items + item
    order = np.argsort(key, kind="stable")
    key, weight = key[order], weight[order]
    first = np.flatnonzero(np.append(True, key[1:] != key[:-1])[: len(key)])
    return ItemWeights(key[first], np.add.reduceat(weight, first) if len(first) else weight[:0], num_items)


def pool_neighbours(neighbours: Neighbours, histories: HistoryItems, decay: float) -> ItemWeights:
    """Sum the lists of each history's items; the list of the item j places from the end is weighted by decay^j."""
    share = (decay**histories.age).astype(np.float32)
    return pool_rows(neighbours, histories.item, histories.request, share, len(neighbours.start) - 1)


def pool_rows(
    lists: Neighbours,
    row: Int[np.ndarray, " P"],
    request: Int[np.ndarray, " P"],
    share: Float32[np.ndarray, " P"],
    num_items: int,
) -> ItemWeights:
    """Sum the lists `row` for each request, weighted by `share`."""
    start = lists.start[row]
    length = lists.start[row + 1] - start
    places = ranges(start, length)
    weight = np.repeat(share, length) * lists.weight[places]
    return sum_weights(np.repeat(request, length), lists.item[places].astype(np.int64), weight, num_items)
