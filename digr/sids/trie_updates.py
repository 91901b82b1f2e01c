"""Update the trie of a changed catalogue: build a new trie, while readers use the old one until it is replaced."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int

from digr.sids.trie import SidTrie, build_sorted, check_codes


def with_items(
    trie: SidTrie,
    item_ids: Sequence[str] | pa.Array,
    codes: Int[np.ndarray, "A L"],
    removed: Sequence[str] | pa.Array = (),
    level_sizes: Sequence[int] | None = None,
) -> SidTrie:
    """Return a trie with items added and removed, by merging instead of sorting again.

    The given trie does not change, so readers can still use it. An item that is both removed and added gets its new SID.
    Places of items differ between the two tries.

    Args:
        item_ids: ids of the A added items.
        codes: their SIDs, as for `build_trie`.
        removed: ids of removed items, each once.
        level_sizes: of the new trie, if a level grew; None keeps the trie's.

    Raises:
        ValueError: a removed id is unknown, an added one is known, no item is left, or an error of `build_trie`.
    """
    sizes = trie.level_sizes if level_sizes is None else tuple(level_sizes)
    codes = np.ascontiguousarray(codes, dtype=np.int32)
    ids, gone = (one if isinstance(one, pa.Array) else pa.array(one, pa.string()) for one in (item_ids, removed))
    check_codes(codes, len(ids), sizes)
    kept = _stays(trie.item_ids, gone)
    old_ids, old_codes = trie.item_ids.filter(pa.array(kept)), trie.codes.cpu().numpy()[kept]
    again = pc.is_in(old_ids, value_set=ids)
    if pc.any(again).as_py():
        raise ValueError(f"trie: item {old_ids.filter(again)[0].as_py()!r} is in the catalogue already; remove it to move it")
    if not len(old_ids) + len(ids):
        raise ValueError("trie: no item is left in the catalogue")
    order = np.lexsort(codes.T[::-1])
    fresh = np.zeros(len(old_codes) + len(codes), bool)  # marks the places of added items in the new order
    fresh[np.searchsorted(_sort_keys(old_codes), _sort_keys(codes[order]), side="right") + np.arange(len(codes))] = True
    source = np.empty(len(fresh), np.int64)  # index of each place's item among the old and then the added ones
    source[~fresh], source[fresh] = np.arange(len(old_codes)), len(old_codes) + order
    merged = np.empty((len(fresh), len(sizes)), np.int32)
    merged[~fresh], merged[fresh] = old_codes, codes[order]
    return build_sorted(pa.concat_arrays([old_ids, ids]).take(pa.array(source)), merged, sizes)


def _stays(item_ids: pa.Array, gone: pa.Array) -> Bool[np.ndarray, " N"]:
    """Mark the items that are not removed."""
    # the many ids are looked up in the set of the few, because hashing the many would take longer
    kept = pc.invert(pc.is_in(item_ids, value_set=gone)).to_numpy(zero_copy_only=False)
    if len(item_ids) - kept.sum() < len(gone):
        unknown = gone.filter(pc.invert(pc.is_in(gone, value_set=item_ids)))
        raise ValueError(
            f"trie: removed item {unknown[0].as_py()!r} is not in the catalogue"
            if len(unknown)
            else "trie: an item is removed twice; give each id once"
        )
    return kept


def _sort_keys(codes: Int[np.ndarray, "N L"]) -> np.ndarray:
    """Return each SID as bytes that sort like the SIDs."""
    return np.ascontiguousarray((codes + 1).astype(">u4")).view(f"S{4 * codes.shape[1]}").ravel()
