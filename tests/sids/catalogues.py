"""Random catalogues of semantic IDs, and what makes two tries equal."""

import numpy as np
import torch
from hypothesis import strategies as st

from digr.sids.trie import SidTrie, build_trie


def random_trie(num_items: int, seed: int) -> SidTrie:
    """Build a trie of distinct random SIDs of three levels, the last only where it is needed."""
    rng = np.random.default_rng(seed)
    keys = np.sort(rng.choice(8 * 16 * 8, num_items, replace=False))
    codes = np.stack(np.unravel_index(keys, (8, 16, 8)), 1)
    alone = np.bincount(keys // 8, minlength=8 * 16)[keys // 8] == 1
    codes[alone, 2] = -1
    order = rng.permutation(num_items)
    return build_trie([f"item {number}" for number in range(num_items)], codes[order], (8, 16, 8))


def assert_equal_tries(found: SidTrie, expected: SidTrie) -> None:
    """Compare every tensor, the ids and the facts."""
    for name, right in expected._asdict().items():
        left = getattr(found, name)
        if isinstance(right, torch.Tensor):
            assert left.dtype == right.dtype and torch.equal(left, right), name
        elif name == "child_bits":
            for one, two in zip(left, right, strict=True):
                assert (one is None) == (two is None) and (one is None or torch.equal(one, two))
        else:
            assert left == right, name


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...]]:
    """Random SIDs of 2 levels, and a suffix level on colliding ones."""
    sizes = (draw(st.integers(2, 5)), draw(st.integers(2, 5)))
    pair = st.tuples(st.integers(0, sizes[0] - 1), st.integers(0, sizes[1] - 1))
    pairs = draw(st.lists(pair, min_size=1, max_size=24))
    rows, suffix = [], 1
    for index, codes in enumerate(pairs):
        number = pairs[:index].count(codes) if pairs.count(codes) > 1 else -1
        suffix = max(suffix, number + 1)
        rows.append([*codes, number])
    return np.array(rows), (*sizes, suffix)
