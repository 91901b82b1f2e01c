"""A trie in mapped files, to which items are added without copying it.

Added items come after all others in the order of items, and nodes for them after all other nodes. The children of a node must be
contiguous, so a node that gets a child gets a new block of children behind the last node. Mappings are private, so only the pages
that this changes are copied: the cost is that of the added items and their siblings, whatever the size of the catalogue.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int

from digr.serving.mapped import lazy_zeros, map_array, map_texts, save_array, save_texts
from digr.sids.trie import SidTrie, check_codes

_NODE_ARRAYS = ("node_code", "first_child", "num_children", "item_start", "item_end", "node_open")
_FACTS = "trie.json"


class _Added(NamedTuple):
    """The M added items at some depth, sorted by their codes, and the nodes that they have made so far."""

    codes: Int[np.ndarray, "M L"]
    first_place: int
    node: Int[np.ndarray, " M"]
    """Node of each item's prefix; that of its whole SID if it ended."""
    base: Int[np.ndarray, " M"]
    """The same node in the trie without added items; -1 if it is new."""
    parts: list[dict[str, np.ndarray]]
    """Blocks of nodes behind the last one, one after another."""
    changes: list[tuple[str, np.ndarray, np.ndarray]]
    """Name of an array, nodes and their values, in the order of writing."""
    num_nodes: int


class _Children(NamedTuple):
    """The C different prefixes of the added items at some depth, by their parents."""

    parent: Int[np.ndarray, " C"]
    old_parent: Int[np.ndarray, " C"]
    """The parent in the trie without added items; -1 if it is new."""
    code: Int[np.ndarray, " C"]
    old: Int[np.ndarray, " C"]
    """The child in the trie without added items; -1 if it is new."""
    start: Int[np.ndarray, " C"]
    end: Int[np.ndarray, " C"]
    """Places of the added items below are from `start` to `end`."""


def save_trie_arrays(folder: Path, trie: SidTrie) -> None:
    """Write a trie for `map_grown_trie`."""
    save_texts(folder, "trie-ids", trie.item_ids)
    save_array(folder, "trie-codes", trie.codes.numpy().ravel())
    for name in (*_NODE_ARRAYS, "node_key"):
        save_array(folder, f"trie-{name}", getattr(trie, name).numpy())
    shortest = int((trie.codes >= 0).sum(1).min())
    facts = {"level_sizes": trie.level_sizes, "level_start": trie.level_start, "shortest": shortest}
    (folder / _FACTS).write_text(json.dumps(facts))


def shortest_sid(folder: Path) -> int:
    """Return the number of codes of the shortest semantic ID of a trie of `save_trie_arrays`."""
    return json.loads((folder / _FACTS).read_text())["shortest"]


def map_grown_trie(folder: Path, added_ids: pa.Array, added_codes: Int[np.ndarray, "M L"]) -> SidTrie:
    """Map a trie, with items added to it; the added item i has the place N + i, N that of the mapped items.

    Args:
        added_ids: distinct ids that the trie does not have.
        added_codes: codes of the added items, in ascending order; -1 after the end of a shorter SID.

    Raises:
        ValueError: a code is outside its level, or a SID is a prefix of another one.
    """
    facts = json.loads((folder / _FACTS).read_text())
    sizes = tuple(facts["level_sizes"])
    check_codes(added_codes, len(added_ids), sizes)
    codes = map_array(folder, "trie-codes", added_codes.ravel().astype(np.int32)).reshape(-1, len(sizes))
    ids = map_texts(folder, "trie-ids", added_ids)
    base = {name: map_array(folder, f"trie-{name}") for name in _NODE_ARRAYS}
    key, later = map_array(folder, "trie-node_key"), {"later_start": np.zeros(0, np.int64), "later_end": np.zeros(0, np.int64)}
    nodes = base
    if len(added_ids):
        state = _at_root(codes, len(added_ids), len(key))
        for level in range(len(sizes)):
            state = _next_level(state, level, base, key, max(sizes) + 1)
        nodes, later = _write(folder, base, state, ids)
        key = key[:0]
    return SidTrie(
        item_ids=ids,
        codes=torch.from_numpy(codes),
        level_sizes=sizes,
        node_key=torch.from_numpy(key),
        level_start=tuple(facts["level_start"]),
        child_bits=(None,) * len(sizes),
        **{name: torch.from_numpy(values) for name, values in (nodes | later).items()},
    )


def _at_root(codes: Int[np.ndarray, "N L"], num_added: int, num_nodes: int) -> _Added:
    """Return the state of the added items, the last ones of `codes`, before the first level."""
    root, whole, first = np.zeros(num_added, np.int64), np.array([0]), len(codes) - num_added
    changes = [("later_start", whole, np.array([first])), ("later_end", whole, np.array([len(codes)]))]
    return _Added(codes[first:], first, root, root, [], changes, num_nodes)


def _write(
    folder: Path, base: dict[str, np.ndarray], state: _Added, ids: pa.Array
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Map the nodes again, with those that were made and the changes."""
    last = {name: np.zeros(1, base[name].dtype) for name in _NODE_ARRAYS}  # -1 must read a leaf, see `SidTrie.is_open`
    parts = [*state.parts, last]
    nodes = {
        name: map_array(folder, f"trie-{name}", np.concatenate([part[name] for part in parts]).astype(base[name].dtype))
        for name in _NODE_ARRAYS
    }
    later = {name: lazy_zeros(state.num_nodes + 1) for name in ("later_start", "later_end")}
    for name, node, values in state.changes:
        (nodes if name in nodes else later)[name][node] = values
    ended = np.flatnonzero(nodes["num_children"][state.node] > 0)
    if len(ended):
        raise ValueError(
            f"trie: the SID of item {ids[state.first_place + int(ended[0])].as_py()!r} is a prefix of that of another item"
        )
    _open_nodes(nodes, later, state, len(base["node_code"]))
    return nodes, later


def _open_nodes(nodes: dict[str, np.ndarray], later: dict[str, np.ndarray], state: _Added, num_base: int) -> None:
    """Mark the nodes below which more than one SID lies, as far as added items are below them."""
    changed = [node for name, node, _ in state.changes if name == "later_end"]
    touched = np.unique(np.concatenate([np.arange(num_base, state.num_nodes), *changed]))
    num = nodes["item_end"][touched] - nodes["item_start"][touched]
    num += later["later_end"][touched] - later["later_start"][touched]
    nodes["node_open"][touched] = (num > 1) & (nodes["num_children"][touched] > 0)


def _next_level(state: _Added, level: int, base: dict[str, np.ndarray], key: np.ndarray, width: int) -> _Added:
    """Go from the nodes of depth `level` to those of the next depth, and make those that are missing."""
    at = np.flatnonzero(state.codes[:, level] >= 0)
    if not len(at):
        return state
    code, parent, old_parent = state.codes[at, level].astype(np.int64), state.node[at], state.base[at]
    begins = np.flatnonzero(np.append(True, (np.diff(parent) != 0) | (np.diff(code) != 0)))
    start, end = state.first_place + at[begins], state.first_place + np.append(at[begins[1:] - 1], at[-1]) + 1
    code, parent, old_parent = code[begins], parent[begins], old_parent[begins]
    old = _old_children(old_parent, code, key, width)
    children = _Children(parent, old_parent, code, old, start, end)
    block, moved, made, new_blocks = _blocks(state.num_nodes, base, children)
    node = np.where(old >= 0, np.where(moved >= 0, moved, old), made)
    is_old = old >= 0
    changes = [
        *state.changes,
        *new_blocks,
        ("later_start", node[is_old], start[is_old]),
        ("later_end", node[is_old], end[is_old]),
    ]
    owner = np.repeat(np.arange(len(begins)), np.diff(np.append(begins, len(at))))
    next_node, next_base = state.node.copy(), state.base.copy()
    next_node[at], next_base[at] = node[owner], old[owner]
    parts = [*state.parts, block] if len(block["node_code"]) else state.parts
    return state._replace(
        node=next_node, base=next_base, parts=parts, changes=changes, num_nodes=state.num_nodes + len(block["node_code"])
    )


def _old_children(old_parent: Int[np.ndarray, " C"], code: Int[np.ndarray, " C"], key: np.ndarray, width: int) -> np.ndarray:
    """Return the child that each parent has already, -1 if it has none or is itself new."""
    wanted = old_parent * width + code + 1
    found = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
    return np.where((old_parent >= 0) & (key[found] == wanted), found, -1)


def _blocks(
    num_nodes: int, base: dict[str, np.ndarray], children: "_Children"
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[tuple[str, np.ndarray, np.ndarray]]]:
    """Make blocks of all children of the parents that get new ones.

    Returns:
        The nodes of the blocks; the new number of each of the C children that existed, -1 if it does not move; that of each
        new child, else -1; and what changes in the parents.
    """
    parent, old_parent, code, old, start, end = children
    new = np.flatnonzero(old < 0)
    grown, first = np.unique(parent[new], return_index=True)
    before = old_parent[new[first]]
    num_old = np.where(before >= 0, base["num_children"][before], 0)
    if (num_old[before >= 0] == 0).any():
        raise ValueError("trie: the SID of an item of the catalogue is a prefix of that of an added item")
    source = np.repeat(base["first_child"][before] - (num_old.cumsum() - num_old), num_old) + np.arange(num_old.sum())
    owner = np.concatenate([np.repeat(np.arange(len(grown)), num_old), np.searchsorted(grown, parent[new])])
    order = np.lexsort((np.concatenate([base["node_code"][source], code[new]]), owner))
    fresh = {
        "node_code": code[new],
        "first_child": np.zeros(len(new), np.int64),
        "num_children": np.zeros(len(new), np.int64),
        "item_start": start[new],
        "item_end": end[new],
        "node_open": np.zeros(len(new), bool),
    }
    block = {name: np.concatenate([base[name][source], fresh[name]])[order] for name in _NODE_ARRAYS}
    number = np.empty(len(order), np.int64)
    number[order] = num_nodes + np.arange(len(order))
    made = np.full(len(code), -1, np.int64)
    made[new] = number[len(source) :]
    by_source = np.argsort(source, kind="stable")
    where = np.searchsorted(source[by_source], old)
    found = np.minimum(where, max(len(source) - 1, 0))
    moved = np.full(len(code), -1, np.int64)
    if len(source):
        is_moved = (old >= 0) & (source[by_source][found] == old)
        moved[is_moved] = number[: len(source)][by_source][found[is_moved]]
    counts = np.bincount(owner, minlength=len(grown))
    changes = [("first_child", grown, num_nodes + counts.cumsum() - counts), ("num_children", grown, counts)]
    return block, moved, made, changes
