"""Lists of neighbours, and how a history combines them."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from digr.ranking.neighbours import (
    HistoryItems,
    Neighbours,
    from_lists,
    heaviest,
    history_items,
    pool_neighbours,
    sum_weights,
    to_lists,
)

LISTS = Neighbours(np.array([0, 2, 2, 4]), np.array([1, 2, 0, 1], np.int32), np.array([0.5, 0.25, 1.0, 0.125], np.float32))
"""Item 0 leads to 1 and 2, item 1 to nothing, item 2 to 0 and 1."""


def test_a_history_keeps_its_newest_known_items():
    found = history_items(np.array([3, -1, 4, 5, 7]), np.array([0, 4, 4, 5]), 2)
    assert found.item.tolist() == [4, 5, 7]
    assert found.start.tolist() == [0, 2, 2, 3]
    assert found.request.tolist() == [0, 0, 2]
    assert found.age.tolist() == [1, 0, 0]
    assert found.last.tolist() == [5, -1, 7]


def test_the_heaviest_stay_and_equal_ones_as_they_are_given():
    found = heaviest(np.array([1, 1, 1, 0]), np.array([7, 5, 6, 9]), np.array([0.5, 0.5, 0.9, 0.1]), 3, 2)
    assert found.start.tolist() == [0, 1, 3, 3]
    assert found.item.tolist() == [9, 6, 7]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([-np.inf, -2.5, -1e-30, -0.0, 0.0, 1e-30, 0.5, 3.0]))),
    st.integers(1, 5),
)
def test_lists_are_sorted_by_weights_of_any_sign(rows, most):
    found = heaviest(np.array([row for row, _ in rows], np.int64), np.arange(len(rows)), np.array([w for _, w in rows]), 4, most)
    for row in range(4):
        expected = sorted((place for place, each in enumerate(rows) if each[0] == row), key=lambda place: -rows[place][1])
        assert found.item[found.start[row] : found.start[row + 1]].tolist() == expected[:most]


def test_lists_come_back_from_a_table_also_when_rows_were_left_out():
    table = pa.table({"name": ["a", "b", "c"], "lists": to_lists(LISTS)})
    whole = from_lists(table["lists"].combine_chunks())
    assert all(np.array_equal(left, right) for left, right in zip(whole, LISTS, strict=True))
    some = from_lists(table.filter(pa.array([False, True, True]))["lists"].combine_chunks())
    assert some.start.tolist() == [0, 0, 2]
    assert some.item.tolist() == [0, 1]


def test_a_history_pools_the_lists_of_its_items_the_older_the_less():
    histories = HistoryItems(np.array([0, 2]), np.array([0, 2, 2]))  # item 2 is the newest; the second request is empty
    found = pool_neighbours(LISTS, histories, 0.5)
    request, item = np.array([0, 0, 0, 1]), np.array([0, 1, 2, 1])
    assert found.of(request, item).tolist() == [1.0, 0.125 + 0.5 * 0.5, 0.5 * 0.25, 0.0]
    best = found.best(2, 2)
    assert best.item.tolist() == [0, 1]
    assert best.start.tolist() == [0, 2, 2]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(1, 8)), max_size=30))
def test_sums_are_those_of_a_dictionary(pairs):
    expected: dict[tuple[int, int], float] = {}
    for request, item, weight in pairs:
        expected[request, item] = expected.get((request, item), 0.0) + weight
    request, item, weight = (np.array([pair[at] for pair in pairs], np.int64) for at in range(3))
    found = sum_weights(request, item, weight.astype(np.float32), 5)
    everything = np.array([(request, item) for request in range(4) for item in range(5)])
    values = found.of(everything[:, 0], everything[:, 1]).tolist()
    assert values == [expected.get((request, item), 0.0) for request, item in everything.tolist()]
