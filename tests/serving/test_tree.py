"""The tree of semantic IDs against plain loops."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from digr.interests.canonical import CanonicalInterests
from digr.policy.reasons import index_interests
from digr.serving.tree import children_of, common_interests, places_below
from digr.sids.trie import build_trie

SIDS = [(0, 1, -1), (0, 2, 0), (0, 2, 3), (2, 0, -1), (2, 1, 1)]


@pytest.fixture(scope="module")
def trie():
    return build_trie([f"i{index}" for index in range(len(SIDS))], np.array(SIDS), [3, 3, 4])


@pytest.mark.parametrize(
    ("prefix", "codes", "counts", "leaves"),
    [
        ([], [0, 2], [3, 2], [False, False]),
        ([0], [1, 2], [1, 2], [True, False]),
        ([0, 2], [0, 3], [1, 1], [True, True]),
        ([2], [0, 1], [1, 1], [True, False]),
        ([2, 0], [], [], []),
    ],
)
def test_a_prefix_has_the_codes_and_items_below_it(trie, prefix, codes, counts, leaves):
    below = children_of(trie, prefix)
    assert (below.codes, [len(places_below(spans)) for spans in below.spans], below.is_leaf) == (codes, counts, leaves)


@pytest.mark.parametrize("prefix", [[1], [0, 0], [0, 1, 0], [0, 2, 9], [10**9], [0, 2, 0, 0]])
def test_a_prefix_that_nothing_begins_with_is_an_error(trie, prefix):
    with pytest.raises(ValueError, match=rf"prefix {'.'.join(map(str, prefix))}: no semantic ID of the catalogue begins with it"):
        children_of(trie, prefix)


def test_the_commonest_interests_of_a_range_stand_first():
    rng = np.random.default_rng(0)
    owned = [list(rng.choice([f"w{index}" for index in range(8)], rng.integers(0, 5), replace=False)) for _ in range(40)]
    rows = [
        {"owner": "item", "owner_id": f"i{item}", "rank": rank, "interest": str(word), "probability": 1 - rank / 10, "label": 1}
        for item, words in enumerate(owned)
        for rank, word in enumerate(words)
    ]
    interests = index_interests(pa.Table.from_pylist(rows), pa.array([f"i{item}" for item in range(40)]))
    spans = [((0, 10),), ((10, 10),), ((10, 37),), ((3, 7), (37, 40))]
    for one, found in zip(spans, common_interests(interests, spans, 3), strict=True):
        counts = Counter(str(word) for start, end in one for words in owned[start:end] for word in words)
        assert [counts[word] for word in found] == [count for _, count in counts.most_common(3)]
        assert len(set(found)) == len(found)
    assert common_interests(interests, [], 3) == []


def test_the_interests_of_a_range_are_canonical_ones_by_name_and_an_item_counts_once():
    owned = [["light packs", "heavy packs"], ["night photos"], ["night photos"], ["new words"]]
    rows = [
        {"owner": "item", "owner_id": f"i{item}", "rank": rank, "interest": phrase, "probability": 0.9, "label": 1}
        for item, phrases in enumerate(owned)
        for rank, phrase in enumerate(phrases)
    ]
    names = pa.array(["packs for hikes", "stars"])
    canonical = CanonicalInterests(pa.array(["heavy packs", "light packs", "night photos"]), np.array([0, 0, 1]), names)
    interests = index_interests(pa.Table.from_pylist(rows), pa.array([f"i{item}" for item in range(4)]), canonical)
    assert common_interests(interests, [((0, 4),), ((3, 4),)], 3) == [["stars", "packs for hikes", "new words"], ["new words"]]
