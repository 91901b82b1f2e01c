"""Wishes move a list in their direction, and a larger weight moves it further."""

import numpy as np
import pyarrow as pa
import pytest

from digr.config.ranking import RankingConfig
from digr.ranking.groups import group_items
from digr.ranking.lists import ListRanker
from digr.ranking.neighbours import HistoryItems
from digr.ranking.ranker import RankingExamples, fit_trees
from digr.ranking.steering import (
    SCALE,
    Vocabulary,
    Wish,
    carriers_of,
    find_interest,
    proposals,
    steer_scores,
    wish_of_interest,
    wish_of_words,
)
from digr.ranking.systems import SERVED, feature_names
from tests.ranking.tiny_view import GRAINS, random_view

GROUPS = group_items(np.array([0, 0, 1, 2, 3]), np.array([0, 1, 1, 2, 0]), np.array([0.75, 0.25, 1.0, 1.0, 1.0]), 5, 3)
"""Item 0 has interest 0 and a little of 1, item 1 has 1, item 2 has 2, item 3 has 0, item 4 has none."""
CENTROIDS = np.array([[1, 0, 0], [0.8, 0.6, 0], [0, 0, 1]], np.float32)
VOCABULARY = Vocabulary(pa.array(["trout", "fly fishing", "bread"]), CENTROIDS, carriers_of(GROUPS))


def test_the_carriers_of_an_interest_are_its_items_the_largest_share_first():
    lists = VOCABULARY.carriers
    assert [lists.item[lists.start[group] : lists.start[group + 1]].tolist() for group in range(3)] == [[3, 0], [1, 0], [2]]


def test_an_interest_is_found_by_its_name_whatever_its_case():
    assert [find_interest(VOCABULARY, name) for name in (" Fly Fishing ", "bread", "cheese")] == [1, 2, -1]


def test_free_words_are_the_nearest_interests_the_best_counting_whole():
    wish = wish_of_words(VOCABULARY, np.array([0.6, 0.8, 0], np.float32), -0.5)
    assert wish.group.tolist() == [1, 0]
    assert wish.nearness.tolist() == pytest.approx([1.0, 0.6 / 0.96])
    assert wish.weight == -0.5
    assert len(wish_of_words(VOCABULARY, np.array([0, -1, 0], np.float32), 1.0).group) == 0


def test_a_wish_adds_its_weight_times_the_nearness_of_the_best_interest():
    wishes = [Wish(np.array([1, 0]), np.array([1.0, 0.5]), 2.0), wish_of_interest(2, -1.0)]
    found = steer_scores(wishes, GROUPS, np.arange(5))
    assert found.tolist() == pytest.approx([2 * SCALE, 2 * SCALE, -SCALE, SCALE, 0.0])


def test_positive_wishes_propose_their_carriers_and_negative_ones_nothing():
    wishes = [wish_of_interest(0, 1.0), wish_of_interest(2, -1.0)]
    assert proposals(wishes, VOCABULARY.carriers, 5).item.tolist() == [3, 0]
    assert proposals(wishes[1:], VOCABULARY.carriers, 5).item.tolist() == []


def _list_ranker() -> ListRanker:
    names = feature_names(SERVED, GRAINS)
    features = np.random.default_rng(0).normal(size=(4000, len(names))).astype(np.float32)
    is_target = (np.arange(20) == features.sum(1).reshape(-1, 20).argmax(1)[:, None]).ravel()
    config = RankingConfig(rounds=20, min_leaf_candidates=20)
    ranker = fit_trees(RankingExamples(features, np.arange(0, 4001, 20), is_target), names, config, seed=0, num_threads=1)
    return ListRanker(random_view(7, num_items=200), {SERVED: ranker})


@pytest.mark.parametrize("group", [0, 3])
def test_the_share_of_the_best_ten_that_serves_a_wish_grows_with_its_weight(group):
    lists = _list_ranker()
    groups, histories = lists.view.families["interests"].groups[0], HistoryItems(np.array([5, 9]), np.array([0, 2]))
    carriers = carriers_of(groups)
    serves = {int(item) for item in np.repeat(np.arange(200), np.diff(groups.start))[groups.group == group]}
    shares = []
    for weight in (-3.0, -0.3, 0.1, 0.3, 1.0, 3.0):
        ((_, found),) = lists.rank(histories, None, 10, wishes=[wish_of_interest(group, weight)], carriers=carriers)
        shares.append(len(serves & set(found[SERVED].candidates.item.tolist())))
    assert shares == sorted(shares)
    assert shares[0] < shares[-1] == 10
    ((_, plain),) = lists.rank(histories, None, 10)
    ((_, again),) = lists.rank(histories, None, 10, wishes=[], carriers=carriers)
    assert plain[SERVED].candidates.item.tolist() == again[SERVED].candidates.item.tolist()
    assert plain[SERVED].score.tolist() == again[SERVED].score.tolist()
