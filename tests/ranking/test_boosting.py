"""Boosts as arrays: what they add, and what they propose."""

import numpy as np

from digr.ranking.boosting import MOST_BOOSTED, Boost, boost_scores, boosted_items
from digr.ranking.steering import SCALE


def _boost(items, weight, num_items=6):
    return Boost(np.isin(np.arange(num_items), items), weight)


def test_the_weights_of_all_conditions_that_an_item_meets_add_up():
    boosts = [_boost([0, 1], 2.0), _boost([1, 2], -0.5)]
    assert boost_scores(boosts, np.array([2, 1, 0, 5])).tolist() == [-0.5 * SCALE, 1.5 * SCALE, 2 * SCALE, 0]


def test_what_is_boosted_most_is_proposed_first_then_what_is_popular():
    popular = np.array([5, 3, 1, 0, 2, 4])
    assert boosted_items([_boost([0, 1, 3], 1.0), _boost([0], 1.0)], popular, None).tolist() == [0, 3, 1]


def test_what_is_buried_or_not_allowed_is_not_proposed():
    popular, allowed = np.arange(6), np.array([True, True, False, True, True, True])
    boosts = [_boost([0, 1, 2], 1.0), _boost([1], -1.0), _boost([4], -2.0)]
    assert boosted_items(boosts, popular, allowed).tolist() == [0]
    assert boosted_items([_boost([4], -1.0)], popular, None).tolist() == []


def test_a_boost_of_many_items_proposes_a_bounded_number():
    popular = np.random.default_rng(0).permutation(500)
    found = boosted_items([_boost(np.arange(400), 1.0, 500)], popular, None)
    assert found.tolist() == popular[popular < 400][:MOST_BOOSTED].tolist()
