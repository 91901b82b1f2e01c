"""The tree of semantic IDs, one node at a time: the children of a prefix, and the common interests of its items."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int

from digr.policy.reasons import ItemInterests, names_of
from digr.sids.trie import NO_NODE, ROOT, SidTrie

MAX_INTEREST_ROWS = 1_000_000
"""Most interests that are counted below a prefix; if there are more, an even sample is."""


class PrefixChildren(NamedTuple):
    """The children of a prefix, by code."""

    num_items: int
    codes: list[int]
    spans: list[tuple[int, int]]
    """Range of each child's items in the trie's order."""
    is_leaf: list[bool]
    """Whether a child ends a semantic ID."""


def children_of(trie: SidTrie, prefix: Sequence[int]) -> PrefixChildren:
    """Return the children of a prefix.

    Raises:
        ValueError: no item's semantic ID begins with it.
    """
    node = torch.tensor([ROOT], device=trie.codes.device)
    for code in prefix:
        known = 0 <= code < max(trie.level_sizes)
        node = trie.child(node, torch.tensor([code if known else NO_NODE], device=node.device))
    if int(node) == NO_NODE:
        written = ".".join(map(str, prefix))
        raise ValueError(
            f"prefix {written}: no semantic ID of the catalogue begins with it; start at the root and follow its children"
        )
    first = int(trie.first_child[node])
    children = slice(first, first + int(trie.num_children[node]))
    spans = torch.stack([trie.item_start[children], trie.item_end[children]], 1).tolist()
    return PrefixChildren(
        num_items=int(trie.item_end[node] - trie.item_start[node]),
        codes=trie.node_code[children].tolist(),
        spans=[(start, end) for start, end in spans],
        is_leaf=(trie.num_children[children] == 0).tolist(),
    )


def common_interests(interests: ItemInterests, spans: Sequence[tuple[int, int]], count: int) -> list[list[str]]:
    """Return for each range of items its `count` most frequent interests, most frequent first.

    These are names of canonical interests; an interest without a canonical one is its own name.
    """
    if not spans:
        return []
    bounds = np.array([[interests.offsets[start], interests.offsets[end]] for start, end in spans])
    rows = np.concatenate([np.arange(start, end) for start, end in bounds])
    step = -(-len(rows) // MAX_INTEREST_ROWS) or 1
    group = np.repeat(np.arange(len(spans)), bounds[:, 1] - bounds[:, 0])[::step]
    rows = rows[::step]
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
