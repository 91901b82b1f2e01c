"""A trie with changes equals one built anew, and leaves the old one as it was."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digr.sids.trie import build_trie
from digr.sids.trie_updates import with_items
from tests.sids.catalogues import assert_equal_tries, catalogues, random_trie


@given(catalogues(), st.data())
@settings(max_examples=40, deadline=None)
def test_items_added_and_removed_give_the_trie_that_a_build_gives(catalogue, data):
    codes, sizes = catalogue
    ids = [f"i{row}" for row in range(len(codes))]
    kinds = data.draw(st.lists(st.sampled_from(["old", "new", "gone"]), min_size=len(ids), max_size=len(ids)))
    kinds[data.draw(st.integers(0, len(ids) - 1))] = "old"
    before, further, gone = (
        [row for row, kind in enumerate(kinds) if kind in wanted] for wanted in (("old", "gone"), ("new",), ("gone",))
    )
    after = [row for row, kind in enumerate(kinds) if kind == "old"] + further
    trie = build_trie([ids[row] for row in before], codes[before], sizes)
    changed = with_items(trie, [ids[row] for row in further], codes[further].reshape(-1, 3), [ids[row] for row in gone])
    assert_equal_tries(changed, build_trie([ids[row] for row in after], codes[after], sizes))
    assert_equal_tries(trie, build_trie([ids[row] for row in before], codes[before], sizes))


def test_an_item_that_is_removed_and_given_again_moves():
    trie = build_trie(["a", "b"], np.array([[0, 0], [1, 1]]), (2, 2))
    moved = with_items(trie, ["a"], np.array([[1, 0]]), removed=["a"])
    assert moved.item_ids.to_pylist() == ["a", "b"]
    assert moved.codes.tolist() == [[1, 0], [1, 1]]


def test_a_suffix_level_that_grew_takes_further_items():
    trie = build_trie(["a", "b"], np.array([[0, 0], [0, 1]]), (1, 2))
    grown = with_items(trie, ["c"], np.array([[0, 2]]), level_sizes=(1, 3))
    assert grown.level_sizes == (1, 3)
    assert grown.allowed_mask(grown.child(grown.first_child[:1] * 0, grown.codes[:1, 0].long()), 1).tolist() == [[True] * 3]


@pytest.mark.parametrize(
    ("further", "codes", "removed", "message"),
    [
        (["item 3"], [[0, 0, 0]], [], "item 'item 3' is in the catalogue already; remove it to move it"),
        ([], np.empty((0, 3), int), ["x"], "removed item 'x' is not in the catalogue"),
        ([], np.empty((0, 3), int), ["item 3", "item 3"], "an item is removed twice"),
        ([], np.empty((0, 3), int), [f"item {number}" for number in range(9)], "no item is left"),
        (["x"], [[0, 99, 0]], [], r"codes must be in \[0, level size\)"),
        (["x"], [[0, 0]], [], r"expected codes of shape \(1, 3\), found \(1, 2\)"),
    ],
)
def test_changes_that_do_not_fit_are_refused(further, codes, removed, message):
    with pytest.raises(ValueError, match=message):
        with_items(random_trie(9, seed=0), further, np.array(codes), removed)


def test_an_item_whose_sid_begins_another_is_refused():
    trie = build_trie(["a"], np.array([[0, 1]]), (2, 2))
    with pytest.raises(ValueError, match="the SID of item 'b' is a prefix of that of item 'a'"):
        with_items(trie, ["b"], np.array([[0, -1]]))
