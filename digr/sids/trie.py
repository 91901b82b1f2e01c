"""The trie of semantic IDs: the codes that may follow each prefix, and the items below it.

Items are sorted by their codes, so that every prefix is a contiguous range of items. Nodes are numbered level by level
in that order, so that the children of a node are contiguous too (compressed sparse rows). The trie is a few flat tensors:
building, walking and masking are vectorised, and training, roll-outs, evaluation and the endpoint use the same trie.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from digr import artifacts
from digr.artifacts import Store

ROOT = 0
NO_NODE = -1


class SidTrie(NamedTuple):
    """A trie over the SIDs of a catalogue; node 0 is the root.

    Nodes are in breadth-first order, siblings by code. A leaf is a node without children; it holds one item, or
    several where disambiguation is off.
    """

    item_ids: pa.Array
    """Ids in the trie's item order, N of them."""
    codes: Int[Tensor, "N L"]
    """Codes in the same order, -1 after the end of a shorter SID."""
    level_sizes: tuple[int, ...]
    """Codes per level, the suffix level included."""
    node_code: Int[Tensor, " nodes"]
    """Code that leads into a node (root: -1)."""
    node_key: Int[Tensor, " nodes"]
    """parent * (max(level_sizes) + 1) + code + 1, ascending; with -1 as parent or code it finds no node (root: least int64)."""
    first_child: Int[Tensor, " nodes"]
    num_children: Int[Tensor, " nodes"]
    item_start: Int[Tensor, " nodes"]
    item_end: Int[Tensor, " nodes"]
    node_open: Bool[Tensor, " nodes"]
    """Whether more than one SID lies below a node; a leaf is never open, also if several items share its SID."""
    level_start: tuple[int, ...]
    """First node of each depth, 0 to L - 1."""
    child_bits: tuple[UInt8[Tensor, "P K8"] | None, ...]
    """Per level with many children per node: a bit for each code that may follow each node of that depth, and a last
    row of zeros; None for other levels."""
    later_start: Int[Tensor, " n"] = torch.zeros(0, dtype=torch.int64)
    """In a trie to which items were added in place (`grown_trie`): items below node i are `item_start[i]` to `item_end[i]` and
    `later_start[i]` to `later_end[i]`. Such a trie has no `node_key`, and its nodes are not in breadth-first order. Otherwise
    empty."""
    later_end: Int[Tensor, " n"] = torch.zeros(0, dtype=torch.int64)

    @property
    def ranges(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The ranges of items below nodes."""
        return self.item_start, self.item_end, self.later_start, self.later_end

    def later_items(self, nodes: Int[Tensor, "*P"]) -> tuple[Int[Tensor, "*P"], Int[Tensor, "*P"]]:
        """Return the first and the number of the later items below nodes."""
        if not len(self.later_start):
            return torch.zeros_like(nodes), torch.zeros_like(nodes)
        start = self.later_start.take(nodes)
        return start, self.later_end.take(nodes) - start

    @property
    def num_items(self) -> int:
        """Number of items of the catalogue, N."""
        return self.codes.shape[0]

    @property
    def num_levels(self) -> int:
        """Length of the longest SID, L."""
        return len(self.level_sizes)

    def to(self, device: str | torch.device) -> "SidTrie":
        """Return the trie with its tensors on a device."""
        tensors: dict[str, Any] = {name: value.to(device) for name, value in self._asdict().items() if isinstance(value, Tensor)}
        bits = tuple(None if one is None else one.to(device) for one in self.child_bits)
        return self._replace(**tensors, child_bits=bits)

    def is_leaf(self, nodes: Int[Tensor, "*P"]) -> Bool[Tensor, "*P"]:
        """Whether nodes end a SID."""
        return self.num_children[nodes] == 0

    def is_open(self, nodes: Int[Tensor, "*P"]) -> Bool[Tensor, "*P"]:
        """Whether more than one SID lies below nodes; False for -1, because it reads the last node, a leaf."""
        return self.node_open[nodes]

    def sids(self, nodes: Int[Tensor, "*P"]) -> Int[Tensor, "*P L"]:
        """Return the codes of the first SID below each node, -1 after its end; all -1 for node -1."""
        codes = self.codes[self.item_start[nodes.clamp(min=0)]].long()
        return torch.where(nodes[..., None] >= 0, codes, -1)

    def child(self, nodes: Int[Tensor, "*P"], codes: Int[Tensor, "*P"]) -> Int[Tensor, "*P"]:
        """Return the child of each node by one code; -1 if the trie has no such child or the node is -1."""
        assert len(self.node_key), "a trie with items added in place finds no child by its code; see `later_start`"
        key = nodes * (max(self.level_sizes) + 1) + (codes + 1)
        found = torch.searchsorted(self.node_key, key.contiguous()).clamp(max=len(self.node_key) - 1)
        return torch.where(self.node_key[found] == key, found, NO_NODE)

    def children(self, nodes: Int[Tensor, "*P"]) -> Int[Tensor, "*P C"]:
        """List the children of each node in the order of codes, padded with -1; leaves and node -1 have none.

        C is the largest number of children of the nodes.
        """
        count = self.num_children.take(nodes)[..., None]  # -1 reads the last node, which is a leaf
        offset = torch.arange(int(count.max()) if count.numel() else 0, device=nodes.device)
        return torch.where(offset < count, self.first_child.take(nodes)[..., None] + offset, NO_NODE)

    def allowed_mask(self, nodes: Int[Tensor, " P"], level: int) -> Bool[Tensor, "P K"]:
        """Mark the codes of `level` that may follow each node of depth `level`; none for leaves and for -1."""
        bits, size = self.child_bits[level], self.level_sizes[level]
        if bits is not None:
            found = bits[(nodes - self.level_start[level]).clamp(min=-1)]  # -1 reads the last row, of zeros
            places = 1 << torch.arange(8, dtype=torch.uint8, device=nodes.device)
            return (found[..., None] & places).ne(0).flatten(1)[:, :size]
        mask = torch.zeros(len(nodes), size, dtype=torch.bool, device=self.codes.device)
        child = self.children(nodes)
        row, column = torch.nonzero(child >= 0, as_tuple=True)
        mask[row, self.node_code[child[row, column]].long()] = True
        return mask


def build_trie(item_ids: Sequence[str] | pa.Array, codes: np.ndarray, level_sizes: Sequence[int]) -> SidTrie:
    """Build the trie of a catalogue.

    Args:
        item_ids: N distinct ids.
        codes: int [N, L], codes in [0, level size), -1 after the end of a shorter SID.
        level_sizes: codes per level, L of them.

    Raises:
        ValueError: there are no items, a code is outside its level, or a SID is a prefix of another one.
    """
    codes = np.ascontiguousarray(codes, dtype=np.int32)
    ids = item_ids if isinstance(item_ids, pa.Array) else pa.array(item_ids, pa.string())
    check_codes(codes, len(ids), level_sizes)
    if not len(ids):
        raise ValueError("trie: no items; build the SIDs of a catalogue with at least one item")
    order = np.lexsort(codes.T[::-1])
    return build_sorted(ids.take(pa.array(order)), codes[order], level_sizes)


def build_sorted(ids: pa.Array, codes: Int[np.ndarray, "N L"], level_sizes: Sequence[int]) -> SidTrie:
    """Build the trie of items that are already checked and sorted by their codes.

    Raises:
        ValueError: a SID is a prefix of another one.
    """
    num_items, num_levels = codes.shape
    width = max(level_sizes) + 1
    # node of each item at the current depth; -1 after the end of an item's SID
    at, starts, ends = np.zeros(num_items, np.int64), [np.array([0])], [np.array([num_items])]
    node_code, node_key = [np.array([-1])], [np.array([np.iinfo(np.int64).min])]
    total = 1
    for level in range(num_levels):
        alive = np.flatnonzero((codes[:, level] >= 0) & (at >= 0))
        key = at[alive] * width + codes[alive, level] + 1
        fresh = np.concatenate([[True], key[1:] != key[:-1]]) if len(key) else np.zeros(0, bool)
        begin = np.flatnonzero(fresh)
        starts.append(alive[begin])
        ends.append(alive[np.concatenate([begin[1:] - 1, [len(alive) - 1]])] + 1 if len(begin) else begin)
        node_key.append(key[begin])
        node_code.append(codes[alive[begin], level])
        at = np.full(num_items, -1)
        at[alive] = total + np.cumsum(fresh) - 1
        total += len(begin)
    keys = np.concatenate(node_key)
    parent = keys[1:] // width
    depth_starts = np.cumsum([0, *map(len, node_key)])  # depth 0 is the root
    num_children = np.bincount(parent, minlength=total)
    item_start, item_end = np.concatenate(starts), np.concatenate(ends)
    _check_prefix_free(codes, ids)
    return SidTrie(
        item_ids=ids,
        codes=torch.from_numpy(codes),
        level_sizes=tuple(int(size) for size in level_sizes),
        node_code=torch.from_numpy(np.concatenate(node_code).astype(np.int32)),
        node_key=torch.from_numpy(keys.astype(np.int64)),
        first_child=torch.from_numpy(np.searchsorted(parent, np.arange(total)) + 1),
        num_children=torch.from_numpy(num_children),
        item_start=torch.from_numpy(item_start.astype(np.int64)),
        item_end=torch.from_numpy(item_end.astype(np.int64)),
        node_open=torch.from_numpy((item_end - item_start > 1) & (num_children > 0)),
        level_start=tuple(depth_starts[:num_levels].tolist()),
        child_bits=tuple(
            _child_bits(parent[begin - 1 : end - 1] - before, node_code[level + 1], begin - before, level_sizes[level])
            for level, (before, begin, end) in enumerate(zip(depth_starts, depth_starts[1:], depth_starts[2:], strict=False))
        ),
    )


def _child_bits(
    parent: Int[np.ndarray, " C"], code: Int[np.ndarray, " C"], num_nodes: int, size: int
) -> UInt8[Tensor, "P K8"] | None:
    """Pack the children of a level's nodes as bits if this needs at most four bytes per child."""
    width = -(-size // 8)
    if num_nodes * width > 4 * len(code):
        return None
    bits = np.zeros((num_nodes + 1, width), np.uint8)
    np.bitwise_or.at(bits, (parent, code // 8), (1 << (code % 8)).astype(np.uint8))
    return torch.from_numpy(bits)


def check_codes(codes: np.ndarray, num_ids: int, level_sizes: Sequence[int]) -> None:
    """Check codes.

    Raises:
        ValueError: the shape does not match ids and levels, a code is outside its level, or a code follows a -1.
    """
    if codes.ndim != 2 or codes.shape != (num_ids, len(level_sizes)):
        raise ValueError(f"trie: expected codes of shape ({num_ids}, {len(level_sizes)}), found {codes.shape}")
    too_large = codes >= np.asarray(level_sizes)
    ended_early = (codes[:, :-1] < 0) & (codes[:, 1:] >= 0)
    if too_large.any() or (codes[:, 0] < 0).any() or ended_early.any():
        raise ValueError(f"trie: codes must be in [0, level size) for level sizes {list(level_sizes)}, -1 only at the end")


def _check_prefix_free(codes: Int[np.ndarray, "N L"], ids: pa.Array) -> None:
    """Check that no SID is a prefix of another; in sorted order it would be a prefix of the next one."""
    lengths = (codes >= 0).sum(1)
    within = np.arange(codes.shape[1]) < lengths[:-1, None]
    begins = ((codes[:-1] == codes[1:]) | ~within).all(1) & (lengths[:-1] < lengths[1:])
    if begins.any():
        at = int(begins.argmax())
        raise ValueError(f"trie: the SID of item {ids[at].as_py()!r} is a prefix of that of item {ids[at + 1].as_py()!r}")


def codes_of(sids: pa.Table, num_levels: int) -> np.ndarray:
    """Return the codes of `item_sids` rows as int32 [N, L], -1 after the end of a shorter SID."""
    column = sids["codes"].combine_chunks()
    flat, offsets = column.flatten().to_numpy(), column.offsets.to_numpy()
    offsets = offsets - offsets[0]
    lengths = np.diff(offsets)
    codes = np.full((len(lengths), num_levels), -1, np.int32)
    row = np.repeat(np.arange(len(lengths)), lengths)
    codes[row, np.arange(len(flat)) - offsets[:-1][row]] = flat
    return codes


def load_trie(store: Store) -> SidTrie:
    """Build the trie of a run's `item_sids`; the level sizes are the facts of its manifest."""
    level_sizes = artifacts.require(store, "item_sids").facts["level_sizes"]
    table = artifacts.read_table(store, "item_sids")
    return build_trie(table["item_id"].combine_chunks(), codes_of(table, len(level_sizes)), level_sizes)
