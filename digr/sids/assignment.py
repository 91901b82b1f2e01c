"""Codes for a whole catalogue, made unique: spreading over free codes first, suffix codes for what still collides.

Nothing here depends on what an item id looks like or on the order of the rows: the item nearest to its codeword goes
first, and exact ties are broken by a seeded shuffle (ids of real catalogues carry launch dates and product families).
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


class SidAssignment(NamedTuple):
    """Semantic IDs of a catalogue."""

    codes: Int32[np.ndarray, "N L"]
    """One more column than the quantiser has levels if any item has a suffix code; -1 where an item has none."""
    level_sizes: tuple[int, ...]
    """Codes of each column of `codes`."""
    nearest: Int32[np.ndarray, "N L"]
    """The quantiser's own codes, before spreading and suffixes."""


@torch.inference_mode()
def nearest_codes(
    quantiser: Quantiser, vectors: Float[np.ndarray, "N D"]
) -> tuple[Int32[np.ndarray, "N L"], Float32[np.ndarray, " N"]]:
    """Return each vector's codes and its squared distance to their sum, in the quantiser's space."""
    found = quantise_residual(quantiser.encode(vectors), quantiser.codebooks)
    return found.codes.to(torch.int32).cpu().numpy(), found.residual.square().sum(1).float().cpu().numpy()


def assign_sids(
    quantiser: Quantiser,
    batches: Callable[[], Iterable[Float[np.ndarray, "B D"]]],
    *,
    disambiguation: Disambiguation = "colliding",
    spread: bool = True,
    seed: int = 0,
) -> SidAssignment:
    """Give every vector of a stream its semantic ID.

    Args:
        quantiser: fitted; only read.
        batches: starts the stream of vectors; it is read once, and once more if items are to be spread.
        disambiguation: "colliding" gives a suffix code to items whose codes are equal, "all" to every item, "none" leaves
            equal codes.
        spread: move an item whose codes are taken by a nearer item to the nearest free code of the last level (the
            uniform semantic mapping of LC-Rec, arXiv 2311.09049, solved greedily). With "none" nothing moves.
        seed: of the order among exact ties.
    """
    found = [nearest_codes(quantiser, vectors) for vectors in batches()]
    nearest, distance = (np.concatenate(parts) for parts in zip(*found, strict=True))
    tie = np.random.default_rng(seed).permutation(len(nearest))
    codes = nearest
    if disambiguation != "none" and spread:
        late = np.flatnonzero(rank_in_group(group_ids(codes), distance, tie) > 0)
        if len(late):
            codes = _spread(quantiser, take_rows(batches(), late), codes, late, tie, taken=codes[:0])
    group = group_ids(codes)
    gets = np.full(len(codes), disambiguation == "all")
    if disambiguation == "colliding":
        gets = np.bincount(group)[group] > 1
    suffix = np.where(gets, rank_in_group(group, distance, tie), -1)
    return _with_suffix(quantiser, codes, suffix, nearest, num_suffixes=int(suffix.max(initial=-1)) + 1)


def extend_sids(
    quantiser: Quantiser,
    existing: Int32[np.ndarray, "N L"],
    vectors: Float[np.ndarray, "M D"],
    *,
    disambiguation: Disambiguation = "colliding",
    seed: int = 0,
) -> SidAssignment:
    """Give new items semantic IDs beside existing ones, none of which changes; returns those of the new items.

    A new item takes its nearest codes if they are free, else the nearest free code of the last level, else the next
    suffix code of the nearest tuple that has suffix codes. An existing SID never becomes the beginning of another one.
    The rows of items that were taken out stay in `existing`, so that nobody else gets their SIDs.

    Args:
        existing: SIDs as `assign_sids` returned them for the same quantiser, with or without a suffix column.
        vectors: of the new items only.

    Raises:
        ValueError: a new item finds neither a free code nor suffix codes below its prefix: the catalogue has outgrown
            the codebooks.
    """
    levels = len(quantiser.codebooks)
    old, old_suffix = existing[:, :levels], np.full(len(existing), -1, np.int32)
    if existing.shape[1] > levels:
        old_suffix = existing[:, levels]
    nearest, distance = nearest_codes(quantiser, vectors)
    tie = np.random.default_rng(seed).permutation(len(nearest))
    codes, gets = nearest, np.full(len(nearest), disambiguation == "all")
    if disambiguation == "colliding":
        group = group_ids(np.concatenate([nearest, old]))
        is_taken = np.isin(group[: len(nearest)], group[len(nearest) :])
        late = np.flatnonzero(is_taken | (rank_in_group(group[: len(nearest)], distance, tie) > 0))
        codes = _spread(quantiser, vectors[late], nearest, late, tie, taken=old)
        gets[late] = (codes[late] == nearest[late]).all(1)
        codes = _join_suffixed(quantiser, vectors, codes, np.flatnonzero(gets), old[old_suffix >= 0])
    group = group_ids(np.concatenate([codes, old]))
    highest = np.full(len(group), -1, np.int64)
    np.maximum.at(highest, group[len(codes) :], old_suffix)
    rows, group = np.flatnonzero(gets), group[: len(codes)]
    suffix = np.full(len(codes), -1, np.int64)
    suffix[rows] = highest[group[rows]] + 1 + rank_in_group(group[rows], distance[rows], tie[rows])
    num_suffixes = int(max(suffix.max(initial=-1), old_suffix.max(initial=-1))) + 1
    return _with_suffix(quantiser, codes, suffix, nearest, num_suffixes)


def sid_table(item_ids: pa.Array | pa.ChunkedArray, codes: Int32[np.ndarray, "N L"]) -> pa.Table:
    """Return rows of `item_sids`; the padding of items without a suffix code is left out."""
    present = codes >= 0
    offsets = np.concatenate([[0], np.cumsum(present.sum(1))]).astype(np.int32)
    return pa.table({"item_id": item_ids, "codes": pa.ListArray.from_arrays(pa.array(offsets), pa.array(codes[present]))})


def group_ids(codes: Int32[np.ndarray, "N L"]) -> Int64[np.ndarray, " N"]:
    """Number the distinct rows from 0; equal rows have equal numbers. No columns: all rows are equal."""
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
    """Give each row its own code among those its group has free, -1 when none is left.

    In rounds: every row asks for its nearest free code, the nearest asker gets it, the others ask again.
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


def _spread(
    quantiser: Quantiser, vectors: np.ndarray, codes: np.ndarray, late: np.ndarray, tie: np.ndarray, taken: np.ndarray
) -> np.ndarray:
    """Return `codes` with each row of `late` moved to a free code of the last level, where its prefix has one.

    Free is what neither `taken` nor a row of `codes` outside `late` holds. `vectors` belong to `late`. All rows of a prefix
    are placed together, some prefixes at a time to bound memory.
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
        distances = _last_distances(quantiser, vectors[part])
        placed = place_in_free_codes(distances, group, _mask(prefixes, held, size), tie[rows])
        moved[rows[placed >= 0], -1] = placed[placed >= 0]
    return moved


def _join_suffixed(
    quantiser: Quantiser, vectors: np.ndarray, codes: np.ndarray, rows: np.ndarray, suffixed: np.ndarray
) -> np.ndarray:
    """Return `codes` with each of `rows` moved to the nearest tuple below its prefix that has suffix codes."""
    size = len(quantiser.codebooks[-1])
    prefix = group_ids(np.concatenate([codes, suffixed])[:, :-1])
    prefixes, group = np.unique(prefix[rows], return_inverse=True)
    joinable = _mask(prefixes, np.unique(prefix[len(codes) :] * size + suffixed[:, -1]), size)[group]
    if not joinable.any(1).all():
        raise ValueError(
            f"item_sids: {int((~joinable.any(1)).sum())} new items find neither a free code nor suffix codes below their "
            f"prefix; the catalogue has outgrown the codebooks: raise sids.level_sizes and run jobs.build_sids again"
        )
    joined = codes.copy()
    joined[rows, -1] = np.where(joinable, _last_distances(quantiser, vectors[rows]), np.inf).argmin(1)
    return joined


def _mask(prefixes: np.ndarray, keys: np.ndarray, size: int) -> np.ndarray:
    """Return bool [G K]: which keys (prefix * size + code) there are of some sorted prefixes."""
    mask = np.zeros((len(prefixes), size), bool)
    here = keys[np.isin(keys // size, prefixes)]
    mask[np.searchsorted(prefixes, here // size), here % size] = True
    return mask


@torch.inference_mode()
def _last_distances(quantiser: Quantiser, vectors: np.ndarray) -> np.ndarray:
    """Return squared distances [N K] to the last level's codewords, with the levels before at their nearest."""
    latents, book = quantiser.encode(vectors), quantiser.codebooks[-1]
    if len(quantiser.codebooks) > 1:
        latents = quantise_residual(latents, quantiser.codebooks[:-1]).residual
    product = torch.addmm(book.square().sum(1), latents, book.T, alpha=-2)
    return (product + latents.square().sum(1, keepdim=True)).cpu().numpy()


def _with_suffix(
    quantiser: Quantiser, codes: np.ndarray, suffix: np.ndarray, nearest: np.ndarray, num_suffixes: int
) -> SidAssignment:
    sizes: Sequence[int] = [len(book) for book in quantiser.codebooks]
    if num_suffixes:
        codes, sizes = np.column_stack([codes, suffix]), [*sizes, num_suffixes]
    return SidAssignment(codes.astype(np.int32), tuple(sizes), nearest)
