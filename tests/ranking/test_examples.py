"""Which requests and candidates a ranker learns from."""

import numpy as np
import pyarrow as pa
import pytest

from digr.config import build_config
from digr.data.transitions import TrainingSequences
from digr.ranking.examples import example_rows, fit_rows, is_fit_row, ranking_examples, recent_weights, thin, without_last
from digr.ranking.features import pool_lists
from digr.ranking.neighbours import HistoryItems
from digr.ranking.sources import SOURCES, Candidates
from digr.ranking.systems import SERVED, System, build_features, candidates_of, feature_names
from tests.ranking.tiny_view import GRAINS, candidates_after, random_view, some_histories

FAMILIES = ("interests", "text_twin")


@pytest.mark.parametrize(
    ("split", "fit", "expected"),
    [
        ("leave_one_out", "auto", "last_step"),
        ("temporal", "auto", "period"),
        ("official", "auto", "period"),
        ("official", "last_step", "last_step"),
    ],
)
def test_the_rows_to_learn_from_follow_the_split(split, fit, expected):
    tree = {"run": {"dir": "x"}, "data": {"split": split}, "ranking": {"fit": fit}}
    assert fit_rows(build_config(tree, "test")) == expected


def test_the_tail_is_by_number_and_the_last_step_by_user():
    ids = ["train-000000000", "train-000000003.2", "train-000000003", "train-000000001", "train-000000004"]
    train = pa.table({"example_id": ids, "user_id": ["a", "a", "a", "b", "b"]})
    assert is_fit_row(train, "period", 3).tolist() == [False, True, True, False, True]
    assert is_fit_row(train, "last_step", 3).tolist() == [False, False, True, False, True]
    assert is_fit_row(train.slice(0, 0), "last_step", 3).tolist() == []


def test_each_user_loses_its_last_interaction():
    found = without_last(TrainingSequences(pa.array(["a", "b", "c"]), np.array([4, 5, 6, 7]), np.array([0, 3, 3, 4])))
    assert found.item.tolist() == [4, 5]
    assert found.start.tolist() == [0, 2, 2, 2]


def test_recent_interactions_weigh_by_their_age_in_rows():
    found = recent_weights(np.array([0, 8, 10]), np.array([1, 1, 2]), 10, 2.0, 3)
    assert found.tolist() == pytest.approx([0.0, 0.5**5 + 0.5, 1.0])


def test_a_request_keeps_its_target_and_others_at_random_and_nothing_where_nobody_proposed_its_target():
    request, item = np.array([0, 0, 0, 0, 1, 1, 3]), np.array([4, 5, 6, 7, 4, 5, 9])
    ranks = np.zeros((7, len(SOURCES)), np.uint8)
    ranks[:, SOURCES.index("popular")] = np.arange(1, 8)
    candidates = Candidates(request, item, ranks, SOURCES)
    others = set()
    for seed in range(20):
        kept, is_target = thin(candidates, np.array([6, 8, 2, 9]), [System("plain")], 2, np.random.default_rng(seed))
        assert kept.request.tolist() == [0, 0, 3]
        assert is_target.tolist() == [True, False, True]
        assert kept.item[is_target].tolist() == [6, 9]
        places = kept.ranks[:, SOURCES.index("popular")]
        assert places[is_target].tolist() == [3, 7]
        others.add((int(kept.item[1]), int(places[1])))
    assert others == {(4, 1), (5, 2), (7, 4)}


def test_systems_beside_a_system_take_no_candidate_from_it():
    """With one draw for all systems, a system with few sources kept only a share of its training candidates."""
    view, histories = random_view(5, FAMILIES, num_items=60), HistoryItems(np.array([4, 0, 7, 7, 2]), np.array([0, 3, 5]))
    candidates = candidates_after(view, histories)
    systems = [SERVED, System("plain"), System("twin", "text_twin")]
    most = 6
    for system in systems:
        own = candidates.item[candidates_of(system, candidates)]
        assert len(own) > 2 * most
    target = np.array([candidates.item[candidates.request == request][3] for request in range(2)])
    together = thin(candidates, target, systems, most, np.random.default_rng(0)).candidates
    for system in systems:
        alone = thin(candidates, target, [system], most, np.random.default_rng(0)).candidates
        pairs = set(zip(together.request.tolist(), together.item.tolist(), strict=True))
        assert set(zip(alone.request.tolist(), alone.item.tolist(), strict=True)) <= pairs
    assert len(together.item) < len(systems) * len(alone.item)


def test_a_part_without_a_proposed_target_has_no_examples():
    view, histories = random_view(5, FAMILIES), some_histories()
    candidates = candidates_after(view, histories)
    nothing = thin(candidates.take(candidates.item != 7), np.array([7, 7, 7]), [SERVED], 6, np.random.default_rng(0))
    features = build_features(view, histories, pool_lists(view, histories), nothing.candidates)
    assert example_rows(pa.chunked_array([["a", "b", "c"]]), "valid", nothing, features).num_rows == 0


def test_a_ranker_learns_only_from_requests_whose_target_one_of_its_sources_proposed():
    view, histories = random_view(5, FAMILIES), some_histories()
    systems = (SERVED, System("plain"), System("twin", "text_twin"))
    thinned = thin(candidates_after(view, histories), np.array([11, 6, 7]), systems, 50, np.random.default_rng(0))
    features = build_features(view, histories, pool_lists(view, histories), thinned.candidates)
    rows = example_rows(pa.chunked_array([["a", "b", "c"]]), "valid", thinned, features)
    for system in systems:
        found = ranking_examples(rows.to_batches(max_chunksize=5), system, FAMILIES, GRAINS)
        mine = candidates_of(system, thinned.candidates)
        wanted = [request for request in range(3) if (mine & thinned.is_target)[thinned.candidates.request == request].any()]
        kept = mine & np.isin(thinned.candidates.request, wanted)
        assert found.features == pytest.approx(features.of(system, kept))
        assert found.features.shape[1] == len(feature_names(system, GRAINS))
        assert np.diff(found.start).tolist() == [
            int((kept & (thinned.candidates.request == request)).sum()) for request in wanted
        ]
        assert found.is_target.tolist() == thinned.is_target[kept].tolist()
        assert found.is_target.sum() == len(wanted) < 4


def test_nothing_to_learn_from_is_an_error():
    with pytest.raises(ValueError, match="ranking_examples: no row to learn from"):
        ranking_examples([], SERVED, FAMILIES, GRAINS)
