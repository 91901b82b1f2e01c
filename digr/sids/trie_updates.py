"""A catalogue's changes in its trie: the next trie is built beside the one that readers use, and takes its place."""

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
    """Return a trie with more items and without others, merged in order instead of sorted anew.

    The given trie stays as it is, so readers go on with it until the new one takes its place. An item that is removed and
    given again gets its new SID. Places of items differ between the two tries.

    Args:
        item_ids: A further ids.
        codes: their SIDs, as for `build_trie`.
        removed: ids that leave, each once.
        level_sizes: of the new trie, where a level grew; None keeps the trie's.

    Raises:
        ValueError: a removed id that the trie lacks, a further one that it has, no item left, or what `build_trie` refuses.
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
    fresh = np.zeros(len(old_codes) + len(codes), bool)  # which places of the new order are further items'
    fresh[np.searchsorted(_sort_keys(old_codes), _sort_keys(codes[order]), side="right") + np.arange(len(codes))] = True
    source = np.empty(len(fresh), np.int64)  # of each place, counted through the old items and then the further ones
    source[~fresh], source[fresh] = np.arange(len(old_codes)), len(old_codes) + order
    merged = np.empty((len(fresh), len(sizes)), np.int32)
    merged[~fresh], merged[fresh] = old_codes, codes[order]
    return build_sorted(pa.concat_arrays([old_ids, ids]).take(pa.array(source)), merged, sizes)


def _stays(item_ids: pa.Array, gone: pa.Array) -> Bool[np.ndarray, " N"]:
    """Mark the items that are not removed."""
    # the few ids are the set in which the many are looked up: hashing the many takes longer
    kept = pc.invert(pc.is_in(item_ids, value_set=gone)).to_numpy(zero_copy_only=False)
    if len(item_ids) - kept.sum() < len(gone):
        unknown = gone.filter(pc.invert(pc.is_in(gone, value_set=item_ids)))
        raise ValueError(
            f"trie: removed item {unknown[0].as_py()!r} is not in the catalogue"
            if len(unknown)
            else "trie: an item is removed twice; name each once"
        )
    return kept


def _sort_keys(codes: Int[np.ndarray, "N L"]) -> np.ndarray:
    """Write each SID as bytes that compare as the SIDs do."""
    return np.ascontiguousarray((codes + 1).astype(">u4")).view(f"S{4 * codes.shape[1]}").ravel()
