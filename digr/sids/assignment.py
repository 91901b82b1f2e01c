"""Assign unique codes to a whole catalogue: spread items over free codes first, then add suffix codes to collisions.

The result depends neither on item ids nor on the order of rows: the item nearest to its codeword comes first, and exact ties
are broken by a seeded shuffle (ids of real catalogues reveal launch dates and product families).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Float32, Int, Int32, Int64

from digr.sids.fitting import Quantiser, take_rows
from digr.sids.rkmeans import MAX_DISTANCES, quantise_residual

Disambiguation = Literal["colliding", "all", "none"]
CPU_ROWS = 2048
"""Vectors quantised at once on a CPU; few enough that residuals stay in its cache (twice as fast as 65,536)."""


class SidAssignment(NamedTuple):
    """Semantic IDs of a catalogue."""

    codes: Int32[np.ndarray, "N L"]
    """If any item has a suffix code, one more column than the quantiser has levels; -1 for items without one."""
    level_sizes: tuple[int, ...]
    """Number of codes of each column of `codes`."""
    nearest: Int32[np.ndarray, "N L"]
    """The quantiser's own codes, before spreading and suffixes."""


@torch.inference_mode()
def nearest_codes(
    quantiser: Quantiser, vectors: Float[np.ndarray, "N D"]
) -> tuple[Int32[np.ndarray, "N L"], Float32[np.ndarray, " N"]]:
    """Return each vector's codes and its squared distance to their sum, in the quantiser's space."""
    books = quantiser.codebooks
    step = CPU_ROWS if books[0].device.type == "cpu" else max(1, len(vectors))
    codes, distance = np.empty((len(vectors), len(books)), np.int32), np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), step):
        found = quantise_residual(quantiser.encode(vectors[start : start + step]), books)
        codes[start : start + step] = found.codes.to(torch.int32).cpu().numpy()
        distance[start : start + step] = found.residual.square().sum(1).float().cpu().numpy()
    return codes, distance


def assign_sids(
    quantiser: Quantiser,
    batches: Callable[[], Iterable[Float[np.ndarray, "B D"]]],
    *,
    disambiguation: Disambiguation = "colliding",
    spread: bool = True,
    seed: int = 0,
) -> SidAssignment:
    """Assign a semantic ID to every vector of a stream.

    All codes are in memory, because unique codes need all of them, but never all vectors: up to 250 bytes per item while it
    runs, and 4 bytes per code in the result.

    Args:
        quantiser: fitted; only read.
        batches: starts the stream of vectors; it is read once, and once more if items are to be spread.
        disambiguation: "colliding" adds a suffix code to items with equal codes, "all" to every item, "none" keeps equal
            codes.
        spread: balanced assignment of the last level: each of its codes has room for one item per prefix, and an item
            whose code is taken by a nearer item moves to its nearest free one (the uniform semantic mapping of LC-Rec,
            arXiv 2311.09049, solved greedily). The codes before the last never change. With "none" no item moves.
        seed: for the order of exact ties.
    """
    found = [nearest_codes(quantiser, vectors) for vectors in batches()]
    nearest, distance = (np.concatenate(parts) for parts in zip(*found, strict=True))
    tie = np.random.default_rng(seed).permutation(len(nearest))
    codes = nearest
    if disambiguation != "none" and spread:
        late = np.flatnonzero(rank_in_group(group_ids(codes), distance, tie) > 0)
        if len(late):
            codes = spread_codes(quantiser, take_rows(batches(), late), codes, late, tie=tie, taken=codes[:0])
    group = group_ids(codes)
    gets = np.full(len(codes), disambiguation == "all")
    if disambiguation == "colliding":
        gets = np.bincount(group)[group] > 1
    suffix = np.where(gets, rank_in_group(group, distance, tie), -1)
    return with_suffix(quantiser, codes, suffix, nearest, num_suffixes=int(suffix.max(initial=-1)) + 1)


def sid_table(item_ids: pa.Array | pa.ChunkedArray, codes: Int32[np.ndarray, "N L"]) -> pa.Table:
    """Return rows of `item_sids`, without the padding of items that have no suffix code."""
    present = codes >= 0
    offsets = np.concatenate([[0], np.cumsum(present.sum(1))]).astype(np.int32)
    return pa.table({"item_id": item_ids, "codes": pa.ListArray.from_arrays(pa.array(offsets), pa.array(codes[present]))})


def group_ids(codes: Int32[np.ndarray, "N L"]) -> Int64[np.ndarray, " N"]:
    """Return a number from 0 for each row, equal for equal rows; without columns all rows are equal."""
    group = np.zeros(len(codes), np.int64)
    for column in codes.T.astype(np.int64):
        group = np.unique(group * (int(column.max(initial=0)) + 1) + column, return_inverse=True)[1]
    return group


def rank_in_group(
    group: Int64[np.ndarray, " N"], distance: Float[np.ndarray, " N"], tie: Int[np.ndarray, " N"]
) -> Int64[np.ndarray, " N"]:
    """Return each row's place in its group, nearest first, from 0."""
    order = np.lexsort((tie, distance, group))
    ordered = group[order]
    starts = np.searchsorted(ordered, ordered)
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - starts
    return rank


def place_in_free_codes(
    distances: Float[np.ndarray, "N K"],
    group: Int64[np.ndarray, " N"],
    taken: Bool[np.ndarray, "G K"],
    tie: Int[np.ndarray, " N"],
) -> Int64[np.ndarray, " N"]:
    """Assign a different free code of its group to each row, -1 if none is left.

    In rounds: every row requests its nearest free code, the nearest row gets it, and the others request again.
    """
    taken, size = taken.copy(), taken.shape[1]
    placed, left = np.full(len(group), -1, np.int64), np.arange(len(group))
    while len(left := left[~taken[group[left]].all(1)]):
        free = np.where(taken[group[left]], np.inf, distances[left])
        code = free.argmin(1)
        wins = rank_in_group(group[left] * size + code, free[np.arange(len(left)), code], tie[left]) == 0
        placed[left[wins]] = code[wins]
        taken[group[left[wins]], code[wins]] = True
        left = left[~wins]
    return placed


def spread_codes(
    quantiser: Quantiser, vectors: np.ndarray, codes: np.ndarray, late: np.ndarray, *, tie: np.ndarray, taken: np.ndarray
) -> np.ndarray:
    """Return `codes` with each row of `late` moved to a free code of the last level, if its prefix has one.

    A code is free if it is neither in `taken` nor in a row of `codes` outside `late`. `vectors` belong to `late`. All rows of
    a prefix are placed together, some prefixes at a time to bound memory.
    """
    size = len(quantiser.codebooks[-1])
    everything = np.concatenate([codes, taken])
    prefix = group_ids(everything[:, :-1])
    held = np.unique(np.delete(prefix * size + everything[:, -1], late))
    moved = codes.copy()
    order = np.argsort(prefix[late], kind="stable")
    ends = np.flatnonzero(np.diff(prefix[late][order])) + 1
    step = max(1, MAX_DISTANCES // size)
    cuts = np.searchsorted(ends, np.arange(step, len(late), step))
    for part in np.split(order, np.unique(ends[cuts[cuts < len(ends)]])):
        rows = late[part]
        prefixes, group = np.unique(prefix[rows], return_inverse=True)
        distances = last_distances(quantiser, vectors[part])
        placed = place_in_free_codes(distances, group, code_mask(prefixes, held, size), tie[rows])
        moved[rows[placed >= 0], -1] = placed[placed >= 0]
    return moved


def code_mask(prefixes: np.ndarray, keys: np.ndarray, size: int) -> np.ndarray:
    """Return a mask [G K] of the codes that occur below each of some sorted prefixes; keys are prefix * size + code."""
    mask = np.zeros((len(prefixes), size), bool)
    here = keys[np.isin(keys // size, prefixes)]
    mask[np.searchsorted(prefixes, here // size), here % size] = True
    return mask


@torch.inference_mode()
def last_distances(quantiser: Quantiser, vectors: np.ndarray) -> np.ndarray:
    """Return squared distances [N K] to the last level's codewords, after the nearest codewords of the earlier levels."""
    latents, book = quantiser.encode(vectors), quantiser.codebooks[-1]
    if len(quantiser.codebooks) > 1:
        latents = quantise_residual(latents, quantiser.codebooks[:-1]).residual
    product = torch.addmm(book.square().sum(1), latents, book.T, alpha=-2)
    return (product + latents.square().sum(1, keepdim=True)).cpu().numpy()


def with_suffix(
    quantiser: Quantiser, codes: np.ndarray, suffix: np.ndarray, nearest: np.ndarray, num_suffixes: int
) -> SidAssignment:
    """Append a suffix level of `num_suffixes` codes to `codes`, unless there are no suffix codes."""
    sizes: Sequence[int] = [len(book) for book in quantiser.codebooks]
    if num_suffixes:
        codes, sizes = np.column_stack([codes, suffix]), [*sizes, num_suffixes]
    return SidAssignment(codes.astype(np.int32), tuple(sizes), nearest)
