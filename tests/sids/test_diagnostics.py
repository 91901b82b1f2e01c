"""The diagnostics are the numbers they claim to be."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from digr.data.ids import build_id_index
from digr.data.transitions import training_sequences
from digr.sids.assignment import assign_sids
from digr.sids.diagnostics import (
    chance_shares,
    check_usage,
    cointeraction_shares,
    collision_rate,
    describe_sids,
    largest_collisions,
    level_use,
    neighbour_pairs,
    prefix_shares,
    reconstruction,
)
from digr.sids.rkmeans import RKMeans, fit_rkmeans


def test_even_use_has_perplexity_of_the_codes_used_and_gini_zero():
    use = level_use(np.array([0, 1, 2, 3, 0, 1, 2, 3], np.int32), 4)
    assert use.usage_rate == 1.0 and use.perplexity == pytest.approx(4.0) and use.gini == pytest.approx(0.0)


def test_one_code_for_all_items_is_a_collapsed_level():
    use = level_use(np.zeros(8, np.int32), 4)
    assert use.usage_rate == 0.25 and use.perplexity == pytest.approx(1.0) and use.gini == pytest.approx(0.75)


def test_gini_is_the_mean_difference_of_two_codes_over_twice_their_mean():
    codes = np.repeat(np.arange(4), [1, 2, 3, 6]).astype(np.int32)
    counts = np.array([1, 2, 3, 6, 0])
    expected = np.abs(counts[:, None] - counts[None]).mean() / (2 * counts.mean())
    assert level_use(codes, 5).gini == pytest.approx(expected)


def test_every_item_of_a_colliding_group_counts():
    assert collision_rate(np.array([[0, 1], [0, 1], [0, 2], [1, 1]], np.int32)) == 0.5


def test_the_largest_colliding_groups_come_first_with_some_of_their_items():
    codes = np.array([[0, 1], [2, 2], [0, 1], [1, 1], [2, 2], [2, 2]], np.int32)
    assert largest_collisions(codes, pa.array(list("abcdef")), num_items=2) == [
        {"codes": [2, 2], "num_items": 3, "item_ids": ["b", "e"]},
        {"codes": [0, 1], "num_items": 2, "item_ids": ["a", "c"]},
    ]


def test_a_prefix_is_shared_only_up_to_the_first_difference():
    left, right = np.array([[1, 2, 3], [1, 2, 3]]), np.array([[1, 0, 3], [1, 2, 3]])
    assert prefix_shares(left, right) == [1.0, 0.5, 0.5]


def test_chance_is_the_share_of_all_pairs():
    codes = np.array([[0, 0], [0, 1], [1, 0], [1, 0]], np.int32)
    assert chance_shares(codes) == pytest.approx([0.5, (1 + 1 + 4) / 16])


def test_neighbours_are_the_nearest_others_by_cosine_even_among_equal_twins():
    vectors = np.array([[1, 0], [2, 0], [0, 1], [0.1, 1]], np.float32)
    pairs = {tuple(pair) for pair in neighbour_pairs(vectors, k=1, seed=0).tolist()}
    assert pairs == {(0, 1), (1, 0), (2, 3), (3, 2)}


def test_neighbours_agree_with_brute_force():
    vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -2)
    expected = {(row, int(other)) for row in range(60) for other in np.argsort(-similarity[row])[:5]}
    assert {tuple(pair) for pair in neighbour_pairs(vectors, k=5, seed=0).tolist()} == expected


def test_reconstructing_the_codewords_themselves_is_perfect():
    vectors = np.array([[0, 0], [4, 0]], np.float32)
    quantiser = RKMeans(torch.zeros(2), torch.ones(2), (torch.from_numpy(vectors),))
    assert reconstruction(quantiser, vectors, quantiser.assign(vectors)) == (0.0, 1.0)


def test_cointeraction_pairs_are_all_steps_of_training_between_two_different_items():
    """Only the last step of each row was looked at, which under leave-one-out left out all steps but one of a user."""
    rows = pa.record_batch(
        {
            "user_id": ["u", "u", "u", "v", "w", "w"],
            "split": ["train", "train", "test", "train", "train", "train"],
            "history": [["c", "a"], ["a", "b"], ["a"], ["gone"], ["b", "b"], ["b", "a"]],
            "target": ["b", "c", "b", "a", "a", "b"],
        }
    )
    codes = np.array([[0, 0], [0, 1], [1, 1]], np.int32)
    for batches in ([rows], [rows.slice(0, 1), rows.slice(1)]):
        sequences = training_sequences(batches, build_id_index(pa.array(["a", "b", "c"])).find)
        # c a, a b, b c; b a, a b
        assert cointeraction_shares(sequences, codes) == ([0.6, 0.0], 5)


def test_no_training_step_gives_zero_shares():
    assert cointeraction_shares([], np.zeros((1, 3), np.int32)) == ([0.0, 0.0, 0.0], 0)


def test_a_collapsed_level_fails_with_what_to_do():
    with pytest.raises(ValueError, match=r"level 2 uses 18\.8% of its 256 codes; expected at least 95\.0% .*more sids\.epochs"):
        check_usage([0.99, 0.188], [256, 256], 0.95)
    check_usage([0.95, 1.0], [256, 256], 0.95)


def test_items_of_one_cluster_are_neighbours_with_one_first_code():
    rng = np.random.default_rng(0)
    vectors = (np.repeat(np.eye(4), 20, axis=0) * 10 + rng.normal(size=(80, 4))).astype(np.float32)
    quantiser = fit_rkmeans(vectors, [4, 16], seed=0)
    assigned = assign_sids(quantiser, lambda: iter([vectors]))
    facts = describe_sids(quantiser, assigned, vectors, np.arange(80), k=5)
    assert facts["usage_rate"][0] == 1.0 and facts["perplexity"][0] == 4.0
    assert facts["neighbour_prefix_share"][0] == 1.0 and facts["chance_prefix_share"][0] == 0.25
    assert facts["reconstruction_r2"] > 0.95 and facts["raw_collision_rate"] >= facts["collision_rate"]
    assert facts["reconstruction_r2"] >= facts["assigned_reconstruction_r2"] > 0.9
    assert facts["raw_duplicate_rate"] == pytest.approx(1 - len(np.unique(assigned.nearest, axis=0)) / 80)
