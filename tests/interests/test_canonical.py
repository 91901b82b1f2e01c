"""Phrases of one motive share one id."""

import numpy as np
import pyarrow as pa
import pytest

from digr.interests import canonical
from digr.interests.canonical import group_names, join_phrases, nearest_group


def _around(centres, per_centre, noise, seed=0):
    rng = np.random.default_rng(seed)
    vectors = np.repeat(centres, per_centre, axis=0) + noise * rng.normal(size=(len(centres) * per_centre, centres.shape[1]))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _same_partition(left, right):
    pairs = set(zip(left.tolist(), right.tolist(), strict=True))
    return len(pairs) == len(set(left.tolist())) == len(set(right.tolist()))


def test_phrases_that_are_near_are_joined_and_others_are_not():
    vectors = _around(np.eye(16)[:5], 6, 0.05)
    groups = join_phrases(vectors, 0.7, seed=0)
    assert _same_partition(groups, np.repeat(np.arange(5), 6))
    assert sorted(set(groups.tolist())) == list(range(5))


@pytest.mark.parametrize(("cosine", "num_groups"), [(0.9, 3), (0.5, 2)])
def test_a_coarser_grain_joins_more(cosine, num_groups):
    near = np.array([1.0, 0.9]) / np.sqrt(1.81)
    vectors = np.array([[1, 0, 0], [near[0], near[1], 0], [0, 0, 1]], np.float32)  # cosines .74, 0, 0
    assert len(set(join_phrases(vectors, cosine, seed=0).tolist())) == num_groups


def test_many_phrases_are_joined_cell_by_cell(monkeypatch):
    monkeypatch.setattr(canonical, "CELL_PHRASES", 40)
    vectors = _around(np.eye(32), 10, 0.02)
    assert _same_partition(join_phrases(vectors, 0.7, seed=0), np.repeat(np.arange(32), 10))


def test_a_cell_that_cannot_be_cut_is_halved(monkeypatch):
    monkeypatch.setattr(canonical, "CELL_PHRASES", 4)
    vectors = np.tile(np.eye(4, dtype=np.float32)[:1], (20, 1))
    groups = join_phrases(vectors, 0.7, seed=0)
    assert len(groups) == 20
    assert len(set(groups.tolist())) <= 5


def test_others_join_the_group_whose_mean_is_nearest():
    means = np.array([[1, 0, 0], [0, 0.9, 0.3]], np.float32)  # the second of (0, 1, 0) and (0, .8, .6)
    found, nearness = nearest_group(np.array([[0, 0.6, 0.8], [0.9, 0.1, 0]], np.float32), means)
    assert found.tolist() == [1, 0]
    assert nearness.tolist() == pytest.approx([0.78, 0.9])  # .78 is the mean of the cosines .6 and .96


def test_a_group_has_the_name_that_its_phrases_tell_at_each_grain():
    rows = {"groups": [[1, 0], [0, 0], [1, 0], [2, 1]], "names": [["b", "x"], ["a", "x"], ["b", "x"], ["c", "y"]]}
    assert [group_names(pa.table(rows), grain).to_pylist() for grain in (0, 1)] == [["a", "b", "c"], ["x", "y"]]


def test_no_phrase_has_no_group():
    assert len(join_phrases(np.zeros((0, 4), np.float32), 0.7, seed=0)) == 0
