"""Reasons are the trusted interests that an item and the history share."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from digr.interests.canonical import CanonicalInterests, find_groups
from digr.policy.reasons import index_interests, shared_interests
from digr.tables import flat_interests
from tests.nested_interests import nest_rows

IDS = pa.array(["b", "a", "c", "d"])


def _labels(*rows: tuple[str, str, float, int]) -> pa.Table:
    names = ("owner_id", "interest", "probability", "label")
    given = [dict(zip(names, row, strict=True)) | {"owner": "user" if row[0].startswith("user") else "item"} for row in rows]
    return flat_interests(nest_rows("interest_labels", given, ["a", "b", "c", "ghost"], ["user1"]))


LABELS = _labels(
    ("a", "cold camping", 0.6, 1),
    ("a", "light packs", 0.9, 1),
    ("a", "gifts", 0.2, 0),
    ("b", "Light packs ", 0.7, 1),
    ("b", "cold camping", 0.8, 1),
    ("b", "light packs", 0.5, 1),
    ("b", "gifts", 0.9, 1),
    ("c", "night photos", 0.9, 1),
    ("ghost", "light packs", 0.9, 1),
    ("user1", "night photos", 0.9, 1),
)
INDEX = index_interests(LABELS, IDS)


def test_reasons_are_shared_trusted_interests_strongest_first():
    assert shared_interests(INDEX, [1], [0, 2, 3]) == [["cold camping", "Light packs "], [], []]


def test_an_untrusted_interest_is_no_reason():
    # "gifts" is trusted for b but not for a
    assert "gifts" not in shared_interests(INDEX, [0], [1])[0]


def test_the_users_own_interests_count_as_the_histories_do():
    """An item that had just what its user was mined for came without a reason, if no item of the history had it."""
    assert shared_interests(INDEX, [], [0, 2], "Night photos; light packs") == [["Light packs "], ["night photos"]]
    assert shared_interests(INDEX, [1], [0, 2], "unheard of") == shared_interests(INDEX, [1], [0, 2])


def test_any_item_of_the_history_counts_and_an_empty_history_gives_none():
    assert shared_interests(INDEX, [3, 2, 1], [2]) == [["night photos"]]
    assert shared_interests(INDEX, [], [0, 1]) == [[], []]


CANONICAL = CanonicalInterests(
    pa.array(["cold camping", "heavy packs", "light packs", "night photos", "winter camps"]),
    np.array([1, 0, 0, 2, 1]),
    pa.array(["heavy packs", "winter camps", "night photos"]),
)


def test_interests_of_one_canonical_interest_are_shared_in_the_items_own_words():
    rows = [("a", "Cold camping", 0.9, 1), ("a", "gifts", 0.8, 1), ("b", "light packs", 0.9, 1), ("b", "winter camps ", 0.8, 1)]
    rows += [
        ("b", "gifts", 0.7, 1),
        ("c", "heavy packs", 0.9, 1),
        ("c", "light packs", 0.8, 1),
        ("ghost", "unknown packs", 0.9, 1),
    ]
    index = index_interests(_labels(*rows), pa.array(["a", "b", "c", "ghost"]), CANONICAL)
    # gifts are of no canonical interest, so they are shared by their words; c shows the stronger of two phrases of one
    assert shared_interests(index, [0], [1, 2, 3]) == [["winter camps ", "gifts"], [], []]
    assert shared_interests(index, [1], [0, 2, 3]) == [["Cold camping", "gifts"], ["heavy packs"], []]
    assert shared_interests(index, [], [2, 0, 3], "Light packs; winter camps; unknown packs") == [
        ["heavy packs"],
        ["Cold camping"],
        ["unknown packs"],
    ]
    plain = index_interests(_labels(*rows), pa.array(["a", "b", "c", "ghost"]))
    assert shared_interests(plain, [1], [0, 2, 3]) == [["gifts"], ["light packs"], []]


@pytest.mark.parametrize("seed", range(5))
def test_canonical_interests_that_join_nothing_change_no_reason(seed):
    """Each phrase its own canonical interest, some of them unknown, is the comparison of words."""
    rng = np.random.default_rng(seed)
    phrases = sorted(set(LABELS["interest"].to_pylist()) | {"zzz", "\u00e9t\u00e9"})
    known = sorted({phrase.strip().lower() for phrase in phrases if rng.random() < 0.6})
    alone = CanonicalInterests(pa.array(known, pa.string()), rng.permutation(len(known)), pa.array(known, pa.string()))
    index = index_interests(LABELS, IDS, alone)
    for history, own in itertools.product(([], [0], [1], [3, 2, 1]), (None, "Night photos; light packs")):
        assert shared_interests(index, history, [0, 1, 2, 3], own) == shared_interests(INDEX, history, [0, 1, 2, 3], own)


def test_interests_are_found_among_the_phrases_whatever_their_case():
    assert find_groups(CANONICAL, pa.array([" Light Packs", "winter camps", "packs", "", "zz"])).tolist() == [0, 1, -1, -1, -1]
    nothing = pa.array([], pa.string())
    assert find_groups(CanonicalInterests(nothing, np.zeros(0, int), nothing), pa.array(["a"])).tolist() == [-1]
