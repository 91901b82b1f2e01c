"""The tree of semantic IDs, one node at a time: the children of a prefix, and the common interests of its items."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int

from digr.policy.reasons import ItemInterests, names_of
from digr.sids.trie import ROOT, SidTrie

MAX_INTEREST_ROWS = 1_000_000
"""Most interests that are counted below a prefix; if there are more, an even sample is."""


Spans = tuple[tuple[int, int], ...]
"""Ranges [start, end) of places: of the run's items, then of added ones."""


class PrefixChildren(NamedTuple):
    """The children of a prefix, by code."""

    num_items: int
    codes: list[int]
    spans: list[Spans]
    """Items below each child."""
    is_leaf: list[bool]
    """Whether a child ends a semantic ID."""


def children_of(trie: SidTrie, prefix: Sequence[int]) -> PrefixChildren:
    """Return the children of a prefix.

    Raises:
        ValueError: no item's semantic ID begins with it.
    """
    node = ROOT
    for code in prefix:
        children = _children(trie, node)
        at = int(np.searchsorted(trie.node_code[children].numpy(force=True), code))
        if at == children.stop - children.start or int(trie.node_code[children.start + at]) != code:
            written = ".".join(map(str, prefix))
            raise ValueError(
                f"prefix {written}: no semantic ID of the catalogue begins with it; start at the root and follow its children"
            )
        node = children.start + at
    children = _children(trie, node)
    every = torch.arange(children.start, children.stop, device=trie.codes.device)
    return PrefixChildren(
        num_items=sum(end - start for start, end in _spans(trie, torch.tensor([node], device=every.device))[0]),
        codes=trie.node_code[children].tolist(),
        spans=_spans(trie, every),
        is_leaf=(trie.num_children[children] == 0).tolist(),
    )


def places_below(spans: Spans) -> Int[np.ndarray, " M"]:
    """Return all places of some ranges."""
    return np.concatenate([np.arange(start, end) for start, end in spans])


def _children(trie: SidTrie, node: int) -> slice:
    first = int(trie.first_child[node])
    return slice(first, first + int(trie.num_children[node]))


def _spans(trie: SidTrie, nodes: Int[torch.Tensor, " P"]) -> list[Spans]:
    later, num_later = trie.later_items(nodes)
    columns = (trie.item_start[nodes], trie.item_end[nodes], later, later + num_later)
    rows = torch.stack(columns, 1).tolist()
    return [((start, end), (more, last)) if last > more else ((start, end),) for start, end, more, last in rows]


def common_interests(interests: ItemInterests, spans: Sequence[Spans], count: int) -> list[list[str]]:
    """Return for the items of each `Spans` their `count` most frequent interests, most frequent first.

    These are names of canonical interests; an interest without a canonical one is its own name.
    """
    if not spans:
        return []
    parts = [[np.arange(interests.offsets[start], interests.offsets[end]) for start, end in one] for one in spans]
    group = np.repeat(np.arange(len(spans)), [sum(map(len, part)) for part in parts])
    rows = np.concatenate([row for part in parts for row in part])
    step = -(-len(rows) // MAX_INTEREST_ROWS) or 1
    group, rows = group[::step], rows[::step]
    keys = interests.keys[rows]
    item = np.searchsorted(interests.offsets, rows, side="right")
    order = np.lexsort((item, keys, group))
    kept = order[_differs(group[order], keys[order], item[order])]  # an item counts once, whatever its phrases
    group, keys, rows = group[kept], keys[kept], rows[kept]
    starts = np.flatnonzero(_differs(group, keys))
    counts = np.diff(np.append(starts, len(rows)))
    best = np.lexsort((rows[starts], -counts, group[starts]))
    return _first_of_each(group[starts][best], rows[starts][best], interests, len(spans), count)


def _differs(*columns: Int[np.ndarray, " P"]) -> Bool[np.ndarray, " P"]:
    """Mark the rows that differ from the one before in some column."""
    found = np.ones(len(columns[0]), bool)
    found[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return found


def _first_of_each(
    group: Int[np.ndarray, " P"], rows: Int[np.ndarray, " P"], interests: ItemInterests, num_groups: int, count: int
) -> list[list[str]]:
    begins = np.searchsorted(group, np.arange(num_groups + 1))
    parts = [rows[start : min(end, start + count)] for start, end in itertools.pairwise(begins)]
    return [names_of(interests, part) for part in parts]
