"""A sweep tries what it should, and says which diagnostic foretells the ranking."""

import pytest

from digr.config.sids import SidsConfig, TuneConfig
from digr.sids.sweep import DIAGNOSTICS, NDCG, candidate_name, candidates, correlations, rank_rows


def _row(trial, score, ndcg=None, status="ok", **facts):
    lists = {"usage_rate": [1.0, 0.9], "perplexity": [4.0, 2.0]} | {
        name: [score] for name in DIAGNOSTICS if name.endswith("prefix_share")
    }
    rest = {name: score for name in DIAGNOSTICS if name not in lists}
    return {"trial": trial, "score": score, "status": status, NDCG: ndcg} | lists | rest | facts


def test_every_combination_is_tried_once_and_k_means_has_no_latent():
    tune = TuneConfig(level_sizes=((8, 8), (8, 8, 8, 8)), latent_dims=(16, 32))
    assert [candidate_name(candidate) for candidate in candidates(SidsConfig(), tune, 600)] == [
        "rqvae-16-8x8",
        "rqvae-32-8x8",
        "rqvae-16-8x8x8x8",
        "rqvae-32-8x8x8x8",
        "rkmeans-8x8",
        "rkmeans-8x8x8x8",
    ]
    assert {candidate["latent_dim"] for candidate in candidates(SidsConfig(latent_dim=9), TuneConfig(), 600)} == {9}


def test_auto_is_a_candidate_of_the_catalogues_own_size_and_not_tried_beside_the_same_numbers():
    tune = TuneConfig(level_sizes=("auto", (32, 32, 32), (8, 8)), quantisers=("rkmeans",))
    assert [candidate_name(one) for one in candidates(SidsConfig(), tune, 600)] == ["rkmeans-32x32x32", "rkmeans-8x8"]
    assert candidate_name(candidates(SidsConfig(), tune, 100)[0]) == "rkmeans-8x8x8"


def test_the_metric_ranks_and_ndcg_goes_before_it():
    rows = [_row("a", 0.3), _row("b", 0.1), _row("c", 0.0, status="stopped"), _row("d", 0.2)]
    assert [row["trial"] for row in rank_rows(rows, "raw_collision_rate")] == ["b", "d", "a"]
    assert [row["trial"] for row in rank_rows(rows, "reconstruction_r2")] == ["a", "d", "b"]
    rows[0][NDCG], rows[3][NDCG] = 0.01, 0.05
    assert [row["trial"] for row in rank_rows(rows, "raw_collision_rate")] == ["d", "a", "b"]


def test_the_correlation_is_spearmans():
    rows = [_row(str(place), score, ndcg) for place, (score, ndcg) in enumerate([(1, 0.10), (5, 0.99), (3, 0.11), (4, 0.12)])]
    assert correlations(rows)["raw_collision_rate"] == 1.0
    # ties share their mean rank: ranks 1.5 1.5 3 4 against 1 2 3 4, by hand 4.5 / sqrt(4.5 * 5)
    tied = [_row(str(place), score, ndcg) for place, (score, ndcg) in enumerate([(7, 0.1), (7, 0.2), (8, 0.3), (9, 0.4)])]
    assert correlations(tied)["raw_collision_rate"] == pytest.approx(4.5 / 22.5**0.5, abs=5e-4)


def test_correlations_are_over_the_candidates_with_ndcg_and_a_constant_diagnostic_has_none():
    rows = [_row(str(place), place / 10, ndcg=place / 100) for place in range(5)] + [_row("x", 9.0)]
    found = correlations(rows)
    assert found["raw_collision_rate"] == 1.0 and found["usage_rate"] is None and set(found) == set(DIAGNOSTICS)
    assert correlations(rows[:3]) == {}
