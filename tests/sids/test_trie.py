"""The trie knows exactly the continuations that the catalogue has."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings

from digr.sids.trie import ROOT, SidTrie, build_trie, codes_of
from tests.sids.catalogues import catalogues

SHOP = np.array([[1, 0, -1], [0, 2, 0], [0, 2, 1], [1, 1, -1]])


def _prefix_node(trie: SidTrie, prefix: list[int]) -> int:
    node = torch.tensor([ROOT])
    for code in prefix:
        node = trie.child(node, torch.tensor([code]))
    return int(node[0])


def test_items_are_sorted_by_code_and_children_follow():
    trie = build_trie(["d", "a", "b", "c"], SHOP, (2, 3, 2))
    assert trie.item_ids.to_pylist() == ["a", "b", "d", "c"]
    assert trie.node_code.tolist() == [-1, 0, 1, 2, 0, 1, 0, 1]
    assert trie.allowed_mask(torch.tensor([ROOT]), 0).tolist() == [[True, True]]
    assert trie.allowed_mask(torch.tensor([1, 2]), 1).tolist() == [[False, False, True], [True, True, False]]
    assert trie.is_leaf(torch.tensor([_prefix_node(trie, [1, 0]), _prefix_node(trie, [0, 2])])).tolist() == [True, False]


def test_a_child_that_does_not_exist_is_minus_one_and_stays_so():
    trie = build_trie(["d", "a", "b", "c"], SHOP, (2, 3, 2))
    missing = trie.child(torch.tensor([1, 2, -1]), torch.tensor([0, 2, 0]))
    assert missing.tolist() == [-1, -1, -1]
    assert not trie.allowed_mask(missing, 2).any()


def test_children_are_listed_in_the_order_of_their_codes():
    trie = build_trie(["d", "a", "b", "c"], SHOP, (2, 3, 2))
    nodes = torch.tensor([ROOT, _prefix_node(trie, [0]), _prefix_node(trie, [1, 0]), -1])
    child = trie.children(nodes)
    assert child.tolist() == [[1, 2], [3, -1], [-1, -1], [-1, -1]]
    assert trie.node_code[child[0]].tolist() == [0, 1]


def test_a_node_is_open_while_more_than_one_sid_lies_below_it():
    trie = build_trie(["d", "a", "b", "c"], SHOP, (2, 3, 2))
    paths = [[], [0], [0, 2], [0, 2, 0], [1], [1, 0]]
    nodes = torch.tensor([_prefix_node(trie, path) for path in paths] + [-1])
    assert trie.is_open(nodes).tolist() == [True, True, True, False, True, False, False]
    shared = build_trie(["a", "b", "c"], np.array([[0, 0], [0, 0], [1, 0]]), (2, 1))
    assert shared.is_open(torch.tensor([_prefix_node(shared, path) for path in ([0], [0, 0], [1])])).tolist() == [
        True,
        False,
        False,
    ]


@given(catalogues())
@settings(max_examples=60, deadline=None)
def test_every_mask_equals_a_scan_of_the_catalogue(catalogue):
    codes, sizes = catalogue
    trie = build_trie([str(index) for index in range(len(codes))], codes, sizes)
    rows = codes.tolist()
    for level in range(3):
        for prefix in {tuple(row[:level]) for row in rows if -1 not in row[:level]}:
            node = _prefix_node(trie, list(prefix))
            found = trie.allowed_mask(torch.tensor([node]), level)[0]
            expected = {row[level] for row in rows if tuple(row[:level]) == prefix and row[level] >= 0}
            assert set(torch.nonzero(found).flatten().tolist()) == expected
            child = trie.children(torch.tensor(node))
            assert trie.node_code[child].tolist() == sorted(expected)
            assert trie.child(torch.tensor([node] * len(expected)), trie.node_code[child].long()).tolist() == child.tolist()
            below = [index for index, row in enumerate(rows) if tuple(row[:level]) == prefix]
            assert bool(trie.is_open(torch.tensor(node))) == (len(below) > 1)
            span = trie.item_ids[int(trie.item_start[node]) : int(trie.item_end[node])].to_pylist()
            assert sorted(map(int, span)) == below


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.empty((0, 2), int), "no items"),
        ([[0, 4]], r"codes must be in \[0, level size\) for level sizes \[2, 3\]"),
        ([[-1, 0]], "-1 only at the end"),
        ([[0, -1], [0, 1]], "the SID of item 'i0' is a prefix of that of item 'i1'"),
        ([[0, 1, 2]], r"expected codes of shape \(1, 2\), found \(1, 3\)"),
    ],
)
def test_bad_codes_are_refused(codes, message):
    codes = np.array(codes)
    with pytest.raises(ValueError, match=message):
        build_trie([f"i{index}" for index in range(len(codes))], codes, (2, 3))


def test_codes_of_reads_lists_of_unequal_length():
    table = pa.table({"item_id": ["x", "a", "b"], "codes": pa.array([[9, 9], [1, 2], [3, 4, 5]], pa.list_(pa.int32()))})
    assert codes_of(table.slice(1), 3).tolist() == [[1, 2, -1], [3, 4, 5]]
