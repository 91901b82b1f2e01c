"""Maximal marginal relevance against its formula, item by item."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from digr.ranking.diversity import diversify, intra_list_distance

SQUARE = np.array([[1, 0], [1, 0], [0, 1], [-1, 0]], np.float32)


def by_the_formula(relevance, vectors, k, diversity, listed):
    """Take argmax of (1 - d) r(i) - d max cos(i, j), one item after another, in plain Python."""
    low, high = min(relevance), max(relevance)
    scaled = [(value - low) / (high - low) if high > low else 0.0 for value in relevance]
    chosen = []
    for _ in range(min(k, len(relevance))):
        before = [*listed, *(vectors[row] for row in chosen)]
        best, value = -1, -np.inf
        for row in range(len(relevance)):
            if row in chosen:
                continue
            nearest = max((float(np.float32(vectors[row] @ other)) for other in before), default=0.0)
            now = (1 - diversity) * scaled[row] - diversity * nearest
            if now > value + 1e-12:
                best, value = row, now
        chosen.append(best)
    return chosen


def _draw(seed, count, of_listed):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-3, 4, size=(count + of_listed, 5)).astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    relevance = np.sort(rng.choice(1000, count, replace=False) / 7.0)[::-1]
    return relevance, vectors[:count], vectors[count:]


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(0, 3), st.integers(1, 14), st.sampled_from([0.1, 0.3, 0.7, 0.95]))
def test_every_item_is_the_best_by_the_formula(seed, count, of_listed, k, diversity):
    relevance, vectors, listed = _draw(seed, count, of_listed)
    found = diversify(relevance, vectors, k, diversity, listed)
    assert found.tolist() == by_the_formula(relevance.tolist(), vectors, k, diversity, list(listed))


def test_no_diversity_is_the_order_by_relevance():
    assert diversify(np.array([4.0, 3.0, 2.0, 1.0]), SQUARE, 4, 0.0).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("diversity", [0.01, 0.5, 1.0])
def test_the_first_item_stays(diversity):
    assert diversify(np.array([4.0, 3.9, 2.0, 1.0]), SQUARE, 4, diversity)[0] == 0


def test_most_diversity_takes_what_is_least_like_the_items_before():
    assert diversify(np.array([4.0, 3.9, 2.0, 1.0]), SQUARE, 4, 1.0).tolist() == [0, 3, 2, 1]


def test_items_of_earlier_pages_count_as_chosen():
    assert diversify(np.array([4.0, 3.9, 2.0, 1.0]), SQUARE, 2, 1.0, np.array([[1, 0]], np.float32)).tolist() == [3, 2]


def test_equal_relevance_and_no_candidates_are_lists_too():
    assert diversify(np.ones(3), SQUARE[:3], 3, 0.0).tolist() == [0, 1, 2]
    assert diversify(np.zeros(0), SQUARE[:0], 3, 0.5).tolist() == []


def test_the_distance_of_a_list_is_the_mean_over_its_pairs():
    assert intra_list_distance(SQUARE) == pytest.approx((0 + 1 + 2 + 1 + 2 + 1) / 6)
    assert intra_list_distance(SQUARE[:1]) == 0
