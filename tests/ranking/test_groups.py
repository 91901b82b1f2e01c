"""Canonical interests of items, and which follow which."""

import numpy as np
import pytest

from digr.ranking import groups as groups_module
from digr.ranking.groups import LIFT_PRIOR, Lifts, fit_lifts, group_items, interest_steps, permute_items, profile_cosine
from digr.ranking.neighbours import heaviest

ITEM, GROUP = np.array([0, 0, 0, 1, 3]), np.array([2, 1, 2, 1, 0])
WEIGHT = np.array([0.5, 0.5, 1.0, 0.8, 0.0])


def test_interests_of_one_group_add_up_and_those_without_weight_do_not_count():
    found = group_items(ITEM, GROUP, WEIGHT, 4, 3)
    assert found.start.tolist() == [0, 2, 3, 3, 3]
    assert found.group.tolist() == [1, 2, 1]
    assert found.share.tolist() == pytest.approx([0.25, 0.75, 1.0])
    assert found.num_items.tolist() == [0, 2, 1]
    weighted = np.array([0.5 * np.log(4 / 2), 1.5 * np.log(4 / 1)])
    assert found.profile[:2].tolist() == pytest.approx((weighted / np.linalg.norm(weighted)).tolist())
    assert found.profile[2] == pytest.approx(1.0)


def test_the_cosine_of_two_items_is_that_of_their_profiles():
    groups = group_items(ITEM, GROUP, WEIGHT, 4, 3)
    rare, usual = groups.profile[1], groups.profile[0]  # item 0 has the interests 1 and 2, item 1 has 1 alone
    found = profile_cosine(groups, np.array([0, 0, 1, 0, 3]), np.array([1, 0, 1, 2, 3]))
    assert found.tolist() == pytest.approx([usual, 1.0, 1.0, 0.0, 0.0])
    assert rare > usual == pytest.approx(0.5 * np.log(2) / np.hypot(0.5 * np.log(2), 1.5 * np.log(4)))
    assert len(profile_cosine(groups, np.zeros(0, int), np.zeros(0, int))) == 0


@pytest.mark.parametrize("seed", range(5))
def test_cosines_are_those_of_the_dense_profiles(seed):
    rng = np.random.default_rng(seed)
    item, group = rng.integers(0, 30, 80), rng.integers(0, 12, 80)
    groups = group_items(item, group, rng.random(80), 30, 12)
    dense = np.zeros((30, 12))
    for number in range(30):
        inside = slice(groups.start[number], groups.start[number + 1])
        dense[number, groups.group[inside]] = groups.profile[inside]
    left, right = rng.integers(0, 30, (2, 200))
    assert profile_cosine(groups, left, right) == pytest.approx((dense[left] * dense[right]).sum(1), abs=1e-6)


def test_permuted_items_have_the_interests_of_others():
    found = permute_items(group_items(ITEM, GROUP, WEIGHT, 4, 3), np.array([1, 0, 3, 2]))
    assert found.start.tolist() == [0, 1, 3, 3, 3]
    assert found.group.tolist() == [1, 1, 2]
    assert found.share.tolist() == pytest.approx([1.0, 0.25, 0.75])


def test_no_interest_at_all_is_an_empty_table():
    nothing = np.zeros(0, np.int64)
    groups = group_items(nothing, nothing, np.zeros(0), 3, 0)
    assert (groups.start.tolist(), groups.num_groups) == ([0, 0, 0, 0], 0)
    lifts = fit_lifts(groups, heaviest(np.array([0]), np.array([1]), np.array([1.0]), 3, 5))
    assert (lifts.start.tolist(), len(lifts.unseen)) == ([0], 0)


def test_lifts_are_those_of_the_formula():
    groups = group_items(np.array([0, 1, 1, 2]), np.array([0, 0, 1, 1]), np.array([1.0, 0.5, 0.5, 1.0]), 3, 2)
    row, item, weight = np.array([0, 0, 1, 2]), np.array([1, 0, 2, 1]), np.array([4.0, 9.0, 2.0, 1.0])
    lifts = fit_lifts(groups, heaviest(row, item, weight, 3, 5))
    share = np.array([[1, 0], [0.5, 0.5], [0, 1]])
    steps = np.zeros((3, 3))
    steps[row, item] = weight
    np.fill_diagonal(steps, 0)
    counted = share.T @ steps @ share
    chance = counted.sum(0) / counted.sum()
    expected = np.log((counted + LIFT_PRIOR * chance) / ((counted.sum(1, keepdims=True) + LIFT_PRIOR) * chance))
    found = np.tile(lifts.unseen[:, None], (1, 2))
    for before in range(2):
        inside = slice(lifts.start[before], lifts.start[before + 1])
        found[before, lifts.group[inside]] += lifts.lift[inside]
    assert found == pytest.approx(expected, rel=1e-5)


def test_steps_lead_to_the_items_of_the_interests_that_follow(monkeypatch):
    """Interest 0 is followed by 1 and by 2, and less than by chance by 3; items 4 to 7 have these."""
    groups = group_items(np.array([4, 5, 5, 6, 7]), np.array([1, 1, 2, 2, 3]), np.ones(5), 8, 4)
    above, unseen = np.array([2.0, 1.5, 0.5], np.float32), np.full(4, -1, np.float32)
    lifts = Lifts(np.array([0, 3, 3, 3, 3]), np.array([1, 2, 3]), above, unseen)
    recent = np.array([0, 0, 0, 0, 3.9, 0.8, 0, 9])
    expected = {4: 1.0 * 2.0, 5: (1.0 + 0.5) * 0.5 * np.sqrt(0.9), 6: 0.5 * np.sqrt(0.1)}
    found = interest_steps(groups, lifts, recent)
    assert found.start.tolist() == [0, 3, 3, 3, 3]
    assert found.item.tolist() == [4, 5, 6]
    assert found.weight.tolist() == pytest.approx([expected[item] for item in (4, 5, 6)], abs=1e-6)
    monkeypatch.setattr(groups_module, "NEXT_INTERESTS", 1)
    assert interest_steps(groups, lifts, recent).item.tolist() == [4, 5]
    monkeypatch.setattr(groups_module, "MOST_CARRIERS", 1)
    assert interest_steps(groups, lifts, recent).item.tolist() == [4]


def test_blocks_of_interests_change_no_step(monkeypatch):
    rng = np.random.default_rng(0)
    groups = group_items(rng.integers(0, 60, 200), rng.integers(0, 25, 200), rng.random(200), 60, 25)
    lifts = fit_lifts(groups, heaviest(rng.integers(0, 60, 300), rng.integers(0, 60, 300), rng.random(300), 60, 9))
    recent = rng.random(60)
    whole = interest_steps(groups, lifts, recent)
    assert len(whole.item) > 100
    monkeypatch.setattr(groups_module, "BLOCK_GROUPS", 7)
    for mine, theirs in zip(interest_steps(groups, lifts, recent), whole, strict=True):
        assert mine.tolist() == theirs.tolist()
