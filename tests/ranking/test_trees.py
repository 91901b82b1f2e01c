"""Trees as boxes give what LightGBM gives."""

import lightgbm as lgb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digr.ranking.ranker import trees_of
from digr.ranking.trees import BLOCK_ROWS

QUIET = {"objective": "regression", "min_data_in_leaf": 5, "num_threads": 1, "verbosity": -1, "deterministic": True}


def boosters_of(seed, leaves, seeds=2, rounds=8):
    """Fit boosters on random rows; the second feature has few values, the last says nothing."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(600, 4)).astype(np.float32)
    features[:, 1], features[:, 3] = features[:, 1].round(), 1
    target = np.sin(3 * features[:, 0]) * features[:, 1] + features[:, 2]
    data = lgb.Dataset(features, target)
    return [lgb.train(QUIET | {"num_leaves": leaves, "seed": seed + number}, data, rounds) for number in range(seeds)], features


@settings(max_examples=12)
@given(st.integers(0, 1000), st.sampled_from([2, 3, 15, 17, 40]), st.integers(1, 3))
def test_scores_and_contributions_are_those_of_the_boosters(seed, leaves, seeds):
    boosters, features = boosters_of(seed, leaves, seeds)
    trees = trees_of(boosters)
    scores = np.mean([booster.predict(features) for booster in boosters], axis=0)
    assert len(features) > 2 * BLOCK_ROWS
    assert trees.score(features) == pytest.approx(scores, abs=1e-9)
    parts = np.mean([booster.predict(features[:40], pred_contrib=True) for booster in boosters], axis=0)
    assert trees.contributions(features[:40]) == pytest.approx(parts[:, :-1], abs=1e-9)


def test_a_value_at_a_threshold_is_on_the_left():
    boosters, features = boosters_of(0, 15)
    thresholds = boosters[0].trees_to_dataframe()["threshold"].dropna().to_numpy()
    rows = np.tile(thresholds[:, None], (1, features.shape[1]))  # as wide as LightGBM's own
    scores = np.mean([booster.predict(rows) for booster in boosters], axis=0)
    assert trees_of(boosters).score(rows) == pytest.approx(scores, abs=1e-9)


def test_a_row_has_the_score_it_has_among_others():
    boosters, features = boosters_of(1, 15)
    trees = trees_of(boosters)
    together = trees.score(features)
    assert [trees.score(features[row : row + 1])[0] for row in range(0, 600, 7)] == together[::7].tolist()
    assert trees.score(features[:0]).tolist() == []
    assert trees.contributions(features[:0]).shape == (0, 4)


def test_trees_that_found_nothing_to_split_give_their_constant():
    features = np.zeros((50, 2), np.float32)
    booster = lgb.train(QUIET, lgb.Dataset(features, np.arange(50.0)), 3)
    trees = trees_of([booster])
    assert trees.score(features[:2]) == pytest.approx(booster.predict(features[:2]))
    assert trees.contributions(features[:2]).tolist() == [[0, 0], [0, 0]]
