"""Semantic IDs are unique where they should be, and never change."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from digr.sids.assignment import assign_sids, group_ids, place_in_free_codes, rank_in_group, sid_table
from tests.sids.grid import GRID, POINTS, grid_vectors


def _assign(vectors, **options):
    return assign_sids(GRID, lambda: iter(np.array_split(vectors, 3)) if len(vectors) > 3 else iter([vectors]), **options)


def test_items_that_do_not_collide_get_their_nearest_codes_and_no_suffix():
    assigned = _assign(grid_vectors([(-1, -1), (-1, 1), (1, 0)]))
    assert assigned.codes.tolist() == [[0, 0], [0, 2], [1, 1]]
    assert assigned.level_sizes == (2, 3)


def test_a_colliding_item_moves_to_the_nearest_free_code_and_the_nearer_item_stays():
    vectors = np.array([[-10, 0.4], [-10, 0.1], [10, 0]], np.float32)
    assert _assign(vectors).codes.tolist() == [[0, 2], [0, 1], [1, 1]]


def test_without_spreading_only_colliding_items_get_suffix_codes_nearest_first():
    vectors = np.array([[-10, 0.4], [-10, 0.1], [10, 0]], np.float32)
    assigned = _assign(vectors, spread=False)
    assert assigned.codes.tolist() == [[0, 1, 1], [0, 1, 0], [1, 1, -1]]
    assert assigned.level_sizes == (2, 3, 2)


def test_what_does_not_fit_below_its_prefix_gets_suffix_codes():
    assigned = _assign(np.array([[-10, 0]] * 5 + [[10, 0]], np.float32))
    assert sorted(map(tuple, assigned.codes[:5].tolist())) == [(0, 0, -1), (0, 1, 0), (0, 1, 1), (0, 1, 2), (0, 2, -1)]
    assert assigned.codes[5].tolist() == [1, 1, -1]


def test_none_leaves_equal_codes():
    assigned = _assign(np.array([[-10, 0]] * 3, np.float32), disambiguation="none")
    assert assigned.codes.tolist() == [[0, 1]] * 3


@settings(deadline=None)
@given(POINTS, st.booleans(), st.sampled_from(["colliding", "all"]))
def test_codes_are_unique_and_only_colliding_items_change(listed, spread, disambiguation):
    vectors = grid_vectors(listed)
    assigned = _assign(vectors, spread=spread, disambiguation=disambiguation)
    assert len(np.unique(assigned.codes, axis=0)) == len(vectors)
    np.testing.assert_array_equal(assigned.nearest, GRID.assign(vectors))
    alone = np.bincount(group_ids(assigned.nearest))[group_ids(assigned.nearest)] == 1
    if disambiguation == "colliding":
        width = assigned.codes.shape[1]
        suffix = assigned.codes[:, 2] if width == 3 else np.full(len(vectors), -1)
        np.testing.assert_array_equal(assigned.codes[alone, :2], assigned.nearest[alone])
        assert (suffix[alone] == -1).all()
        sharing = np.bincount(group_ids(assigned.codes[:, :2]))[group_ids(assigned.codes[:, :2])] > 1
        np.testing.assert_array_equal(suffix >= 0, sharing)
    else:
        assert (assigned.codes[:, 2] >= 0).all()
    assert (assigned.codes < np.array(assigned.level_sizes)).all()
    assert (assigned.codes[:, 0] == assigned.nearest[:, 0]).all()


@settings(deadline=None)
@given(POINTS, st.randoms())
def test_the_order_of_rows_does_not_decide_who_keeps_its_codes(listed, random):
    vectors = grid_vectors(sorted(set(listed))) + np.linspace(0, 0.3, len(set(listed)), dtype=np.float32)[:, None]
    order = np.array(random.sample(range(len(vectors)), len(vectors)))
    np.testing.assert_array_equal(_assign(vectors).codes[order], _assign(vectors[order]).codes)


def test_placing_gives_a_code_to_the_nearest_who_asks():
    distances = np.array([[1.0, 2.0, 9.0], [0.5, 3.0, 4.0], [0.1, 0.2, 0.3]])
    taken = np.array([[False, False, False], [True, True, True]])
    assert place_in_free_codes(distances, np.array([0, 0, 1]), taken, np.arange(3)).tolist() == [1, 0, -1]
    assert not taken[0].any()


def test_placing_in_small_parts_keeps_codes_unique(monkeypatch):
    monkeypatch.setattr("digr.sids.assignment.MAX_DISTANCES", 3)
    codes = _assign(np.array([[-10, 0], [10, 0]] * 3, np.float32)).codes
    assert codes.shape == (6, 2) and len(np.unique(codes, axis=0)) == 6


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20))
def test_rows_have_one_number_exactly_if_they_are_equal(rows):
    group = group_ids(np.array(rows, np.int32).reshape(-1, 2))
    for i, left in enumerate(rows):
        for j, right in enumerate(rows):
            assert (group[i] == group[j]) == (left == right)


def test_ranks_are_by_distance_then_by_tie():
    rank = rank_in_group(np.array([7, 7, 2, 7]), np.array([0.5, 0.1, 9.0, 0.5]), np.array([3, 2, 1, 0]))
    assert rank.tolist() == [2, 0, 0, 1]


def test_the_table_leaves_out_the_padding():
    table = sid_table(pa.array(["x", "y"]), np.array([[1, 2, -1], [1, 3, 0]], np.int32))
    assert table.to_pylist() == [{"item_id": "x", "codes": [1, 2]}, {"item_id": "y", "codes": [1, 3, 0]}]
