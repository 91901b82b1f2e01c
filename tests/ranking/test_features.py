"""Features against plain formulas on dense matrices."""

import numpy as np
import pytest

from digr.ranking.features import (
    DECAYS,
    FLOORS,
    MONOTONE,
    POPULARITY_SHARE,
    STEP_ITEMS,
    RequestItems,
    base_features,
    base_names,
    group_of,
    interest_features,
    interest_names,
    pool_lists,
)
from digr.ranking.neighbours import HistoryItems
from tests.ranking.tiny_view import GRAINS, NUM_ITEMS, random_view, some_histories

HISTORIES = {0: [4, 0, 7], 1: [], 2: [7, 2]}
EVERYTHING = RequestItems(np.repeat(np.arange(3), NUM_ITEMS), np.tile(np.arange(NUM_ITEMS), 3))


def interests_of(view, histories, pairs):
    pooled_steps = pool_lists(view, histories).steps["interests"]
    return interest_features(view.families["interests"], histories, pooled_steps, pairs)


def base_of(view, histories, pairs):
    return base_features(view, histories, pool_lists(view, histories), pairs)


def dense(lists):
    matrix = np.zeros((len(lists.start) - 1, NUM_ITEMS))
    row = np.repeat(np.arange(len(matrix)), np.diff(lists.start))
    matrix[row, lists.item] = lists.weight
    return matrix


def pooled(matrix, history, decay):
    return sum((decay**age * matrix[item] for age, item in enumerate(reversed(history))), np.zeros(matrix.shape[1]))


@pytest.mark.parametrize("images", [False, True])
def test_base_features_are_their_formulas(images):
    view = random_view(0, images=images)
    found = base_of(view, some_histories(), EVERYTHING).reshape(3, NUM_ITEMS, -1)
    columns = {name: found[..., place] for place, name in enumerate(base_names())}
    statistics = view.statistics
    vectors = {name: content.vectors.astype(np.float64) for name, content in view.contents.items()}
    if not images:
        vectors["image"] = np.zeros((NUM_ITEMS, 6))
    for request, history in HISTORIES.items():
        for name, decay in DECAYS.items():
            value = pooled(dense(statistics.neighbours[name]), history, decay)
            if name == "transitions":
                value = value + POPULARITY_SHARE * statistics.frequency / statistics.frequency.max()
            assert columns[name][request] == pytest.approx(np.log(value + FLOORS[name]), rel=1e-4)
        for name, of_items in vectors.items():
            mean = pooled(of_items, history, 0.7)
            expected = of_items @ (mean / max(np.linalg.norm(mean), 1e-9))
            assert columns[f"{name}_mean"][request] == pytest.approx(expected, abs=2e-3)
            last = of_items[history[-1]] if history else np.zeros(6)
            assert columns[f"{name}_last"][request] == pytest.approx(of_items @ last, abs=2e-3)
        assert columns["recent_popularity"][request] == pytest.approx(np.log(0.3 + statistics.recent), rel=1e-5)
        assert columns["repeat"][request].tolist() == [float(item in history) for item in range(NUM_ITEMS)]
        assert columns["repeat_last"][request].tolist() == [float(history[-1:] == [item]) for item in range(NUM_ITEMS)]
        frequency = statistics.frequency[history[-1]] if history else 0
        assert columns["last_frequency"][request] == pytest.approx([np.log1p(frequency)] * NUM_ITEMS)
        assert columns["history_length"][request] == pytest.approx([np.log(max(1, len(history)))] * NUM_ITEMS)


def weights_of(groups, values):
    matrix = np.zeros((NUM_ITEMS, groups.num_groups))
    matrix[np.repeat(np.arange(NUM_ITEMS), np.diff(groups.start)), groups.group] = values
    return matrix


def test_interest_features_are_their_formulas():
    view = random_view(1)
    family = view.families["interests"]
    found = interests_of(view, some_histories(), EVERYTHING).reshape(3, NUM_ITEMS, -1)
    columns = {name: found[..., place] for place, name in enumerate(interest_names(GRAINS))}
    for request, history in HISTORIES.items():
        followed = pooled(weights_of(family.groups[0], family.groups[0].share), history, 0.6) @ dense(family.steps)
        assert columns["interest_steps"][request] == pytest.approx(np.log(followed + 1e-3), rel=1e-4)
        for grain in range(GRAINS):
            groups, lifts = family.groups[grain], family.lifts[grain]
            profile, share = weights_of(groups, groups.profile), weights_of(groups, groups.share)
            lift = np.repeat(lifts.unseen[:, None], groups.num_groups, 1).astype(np.float64)
            lift[np.repeat(np.arange(groups.num_groups), np.diff(lifts.start)), lifts.group] += lifts.lift
            last = profile[history[-1]] if history else np.zeros(groups.num_groups)
            assert columns[f"interest_last_{grain}"][request] == pytest.approx(profile @ last, abs=1e-5)
            wanted = pooled(profile, history, 0.9)
            expected = profile @ (wanted / max(np.linalg.norm(wanted), 1e-9))
            assert columns[f"interest_profile_{grain}"][request] == pytest.approx(expected, abs=1e-5)
            expected = share @ (pooled(share, history, 0.6) @ lift)
            assert columns[f"interest_lift_{grain}"][request] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_request_has_the_features_it_has_alone():
    view, histories = random_view(2), some_histories()
    together = base_of(view, histories, EVERYTHING)[2 * NUM_ITEMS :]
    alone = type(histories)(histories.item[3:], np.array([0, 2]))
    pairs = RequestItems(np.zeros(NUM_ITEMS, np.int64), np.arange(NUM_ITEMS))
    assert base_of(view, alone, pairs) == pytest.approx(together, abs=1e-6)
    both = interests_of(view, histories, EVERYTHING)[2 * NUM_ITEMS :]
    assert interests_of(view, alone, pairs) == pytest.approx(both, abs=1e-6)


def test_steps_are_pooled_of_the_newest_items_alone():
    view, old = random_view(6), [4, 9, 1]
    newest = [int(item) for item in np.random.default_rng(0).integers(0, NUM_ITEMS, STEP_ITEMS)]
    pairs = RequestItems(np.zeros(NUM_ITEMS, np.int64), np.arange(NUM_ITEMS))
    place = interest_names(GRAINS).index("interest_steps")
    long, short = (HistoryItems(np.array(items), np.array([0, len(items)])) for items in (old + newest, newest))
    assert interests_of(view, long, pairs)[:, place].tolist() == interests_of(view, short, pairs)[:, place].tolist()


def test_every_feature_has_a_group():
    assert set(base_names()) >= MONOTONE
    assert group_of("transitions") == "counts"
    assert {group_of(name) for name in interest_names(2)} == {"interests"}
    assert "interests" not in {group_of(name) for name in base_names()}
