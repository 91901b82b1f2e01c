"""Neighbours of an item against a fusion in plain Python."""

import numpy as np
import pytest

from digr.ranking.similar import similar_items, sources_of_items
from tests.ranking.tiny_view import NUM_ITEMS, random_view

NAMES = ["text", "image", "interests", "transitions", "next", "cooccurrence"]


def _fused(view, item, allowed):
    """Return the fused scores and the weights by source of each neighbour."""
    scores, weights = {}, {}
    for name, lists in sources_of_items(view).items():
        pairs = zip(lists.item[lists.start[item] : lists.start[item + 1]], lists.weight[lists.start[item] :], strict=False)
        kept = [(int(place), float(weight)) for place, weight in pairs if place != item and allowed[place]]
        for rank, (place, weight) in enumerate(kept, 1):
            scores[place] = scores.get(place, 0) + 1 / (60 + rank)
            weights.setdefault(place, {})[name] = weight
    return scores, weights


@pytest.mark.parametrize("seed", range(6))
def test_neighbours_are_those_of_all_sources_by_their_reciprocal_ranks(seed):
    view = random_view(seed, images=True)
    assert list(sources_of_items(view)) == NAMES
    allowed = np.random.default_rng(seed).random(NUM_ITEMS) < 0.7
    for item in range(NUM_ITEMS):
        for mask in (None, allowed):
            scores, weights = _fused(view, item, np.ones(NUM_ITEMS, bool) if mask is None else mask)
            found = similar_items(view, item, NUM_ITEMS, NAMES, mask)
            assert found.score.tolist() == pytest.approx(sorted(scores.values(), reverse=True))
            for at, place in enumerate(found.item.tolist()):
                assert found.score[at] == pytest.approx(scores[place])
                told = {name: float(values[at]) for name, values in found.weights.items() if not np.isnan(values[at])}
                assert told == pytest.approx(weights[place])
            assert sorted(found.item.tolist()) == sorted(scores)


def test_one_source_is_its_own_list_and_k_cuts_it():
    view = random_view(0)
    lists = view.statistics.neighbours["transitions"]
    own = [int(place) for place in lists.item[lists.start[4] : lists.start[5]] if place != 4]
    assert similar_items(view, 4, 10, ["transitions"]).item.tolist() == own
    assert similar_items(view, 4, 2, ["transitions"]).item.tolist() == own[:2]
    assert similar_items(view, 4, 2, ["transitions"], np.zeros(NUM_ITEMS, bool)).item.tolist() == []
