"""Semantic IDs of a changing catalogue: new items get SIDs from the frozen quantiser, and no existing SID changes.

SIDs of removed items are stored as retired and never assigned to other items; an item that returns gets its old SID.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int32

from digr.sids.assignment import (
    Disambiguation,
    SidAssignment,
    code_mask,
    group_ids,
    last_distances,
    nearest_codes,
    rank_in_group,
    spread_codes,
    with_suffix,
)
from digr.sids.fitting import Quantiser, take_rows
from digr.sids.trie import codes_of


class Continued(NamedTuple):
    """SIDs of a changed catalogue."""

    assigned: SidAssignment
    retired: pa.Table
    """`item_sids` rows of the items that are no longer in the catalogue."""
    num_new: int


def continue_sids(
    quantiser: Quantiser,
    earlier: pa.Table,
    item_ids: pa.Array | pa.ChunkedArray,
    batches: Callable[[], Iterable[Float[np.ndarray, "B D"]]],
    *,
    disambiguation: Disambiguation = "colliding",
    seed: int = 0,
) -> Continued:
    """Return the SIDs of a changed catalogue: items that had one keep it, new items get one by `extend_sids`.

    Args:
        quantiser: the quantiser of the earlier SIDs.
        earlier: `item_sids` rows of every item that ever had a SID, including retired ones.
        item_ids: the present catalogue, in the order of the vectors.
        batches: starts the stream of its vectors; it is read once, and once more if there are new items.
        disambiguation: as for the earlier SIDs.
        seed: for the order of exact ties.

    Raises:
        ValueError: the catalogue has become too large for the codebooks.
    """
    levels = len(quantiser.codebooks)
    ids = item_ids.combine_chunks() if isinstance(item_ids, pa.ChunkedArray) else item_ids
    longest = pc.max(pc.list_value_length(earlier["codes"])).as_py() or levels
    old = codes_of(earlier, max(levels, longest))
    at = pc.fill_null(pc.index_in(ids, earlier["item_id"].combine_chunks()), -1).to_numpy()
    nearest = np.concatenate([nearest_codes(quantiser, vectors)[0] for vectors in batches()])
    new = np.flatnonzero(at < 0)
    codes = np.full((len(ids), old.shape[1]), -1, np.int32)
    codes[at >= 0] = old[at[at >= 0]]
    num_suffixes = int(old[:, levels:].max(initial=-1)) + 1
    if len(new):
        added = extend_sids(quantiser, old, take_rows(batches(), new), disambiguation=disambiguation, seed=seed)
        codes = np.pad(codes, ((0, 0), (0, added.codes.shape[1] - codes.shape[1])), constant_values=-1)
        codes[new] = added.codes
        num_suffixes = max(num_suffixes, *added.level_sizes[levels:], 0)
    suffix = codes[:, levels] if codes.shape[1] > levels else np.full(len(codes), -1)
    gone = pc.invert(pc.is_in(earlier["item_id"], ids))
    return Continued(with_suffix(quantiser, codes[:, :levels], suffix, nearest, num_suffixes), earlier.filter(gone), len(new))


def extend_sids(
    quantiser: Quantiser,
    existing: Int32[np.ndarray, "N L"],
    vectors: Float[np.ndarray, "M D"],
    *,
    disambiguation: Disambiguation = "colliding",
    seed: int = 0,
) -> SidAssignment:
    """Assign semantic IDs to new items without changing existing ones; return those of the new items.

    A new item takes its nearest codes if they are free, else the nearest free code of the last level, else the next
    suffix code of the nearest tuple that has suffix codes. An existing SID never becomes a prefix of another one.
    `existing` must include the SIDs of removed items, so that no other item gets them.

    Args:
        existing: SIDs as `assign_sids` returned them for the same quantiser, with or without a suffix column.
        vectors: vectors of the new items only.

    Raises:
        ValueError: there is neither a free code nor a suffix code below a new item's prefix: the catalogue has become too
            large for the codebooks.
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
        codes = spread_codes(quantiser, vectors[late], nearest, late, tie=tie, taken=old)
        gets[late] = (codes[late] == nearest[late]).all(1)
        codes = _join_suffixed(quantiser, vectors, codes, np.flatnonzero(gets), old[old_suffix >= 0])
    group = group_ids(np.concatenate([codes, old]))
    highest = np.full(len(group), -1, np.int64)
    np.maximum.at(highest, group[len(codes) :], old_suffix)
    rows, group = np.flatnonzero(gets), group[: len(codes)]
    suffix = np.full(len(codes), -1, np.int64)
    suffix[rows] = highest[group[rows]] + 1 + rank_in_group(group[rows], distance[rows], tie[rows])
    num_suffixes = int(max(suffix.max(initial=-1), old_suffix.max(initial=-1))) + 1
    return with_suffix(quantiser, codes, suffix, nearest, num_suffixes)


def _join_suffixed(
    quantiser: Quantiser, vectors: np.ndarray, codes: np.ndarray, rows: np.ndarray, suffixed: np.ndarray
) -> np.ndarray:
    """Return `codes` with each of `rows` moved to the nearest tuple below its prefix that has suffix codes."""
    size = len(quantiser.codebooks[-1])
    prefix = group_ids(np.concatenate([codes, suffixed])[:, :-1])
    prefixes, group = np.unique(prefix[rows], return_inverse=True)
    joinable = code_mask(prefixes, np.unique(prefix[len(codes) :] * size + suffixed[:, -1]), size)[group]
    if not joinable.any(1).all():
        raise ValueError(
            f"item_sids: {int((~joinable.any(1)).sum())} new items find neither a free code nor suffix codes below their "
            f"prefix; the catalogue has outgrown the codebooks: raise sids.level_sizes and run jobs.build_sids again"
        )
    joined = codes.copy()
    joined[rows, -1] = np.where(joinable, last_distances(quantiser, vectors[rows]), np.inf).argmin(1)
    return joined
