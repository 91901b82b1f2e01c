"""Metrics, intervals and tests against literals, brute force and resampling of examples."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from digr.data.ids import build_id_index
from digr.evaluation.metrics import (
    Examples,
    compare_ranks,
    evaluate_exposure,
    evaluate_ranks,
    evaluate_split,
    rank_system,
    target_ranks,
    target_slices,
)


def _examples(targets: list[str], **slices: list[bool]) -> Examples:
    masks = {"all": np.ones(len(targets), bool)} | {name: np.array(mask) for name, mask in slices.items()}
    return Examples(build_id_index(pa.array([f"e{index}" for index in range(len(targets))])), pa.array(targets), masks)


def _batch(ids: list[str], lists: list[list[str]]) -> pa.RecordBatch:
    return pa.record_batch({"example_id": pa.array(ids), "item_ids": pa.array(lists, pa.list_(pa.string()))})


def _row(rows: list[dict], name: str, k: int, slice_name: str = "all") -> dict:
    return next(row for row in rows if (row["name"], row["k"], row["slice"]) == (name, k, slice_name))


@given(st.lists(st.tuples(st.lists(st.integers(0, 5), max_size=6), st.integers(0, 5)), min_size=1, max_size=8))
def test_ranks_equal_a_search_of_each_list(pairs):
    lists, targets = pa.array([pair[0] for pair in pairs], pa.list_(pa.int64())), pa.array([pair[1] for pair in pairs])
    expected = [items.index(target) + 1 if target in items else 0 for items, target in pairs]
    assert target_ranks(lists, targets).tolist() == expected
    assert target_ranks(lists.slice(1), targets.slice(1)).tolist() == expected[1:]


def test_hr_and_ndcg_of_hand_computed_ranks():
    rows = evaluate_ranks(np.array([1, 3, 0, 7]), {"all": np.ones(4, bool)}, (5, 10), resamples=100, rng=np.random.default_rng(0))
    assert _row(rows, "hr", 5)["value"] == 0.5
    assert _row(rows, "hr", 10)["value"] == 0.75
    assert _row(rows, "ndcg", 5)["value"] == pytest.approx((1 + 0.5) / 4)
    assert _row(rows, "ndcg", 10)["value"] == pytest.approx((1 + 0.5 + 1 / 3) / 4)


def test_an_empty_slice_says_so_and_has_no_value():
    rows = evaluate_ranks(np.array([1]), {"cold": np.zeros(1, bool)}, (5,), resamples=100, rng=np.random.default_rng(0))
    assert [row["num_examples"] for row in rows] == [0, 0]
    assert all(math.isnan(row[column]) for row in rows for column in ("value", "low", "high"))


def test_the_interval_is_that_of_resampling_examples():
    ranks = np.random.default_rng(1).integers(0, 12, 400)
    row = _row(
        evaluate_ranks(ranks, {"all": np.ones(400, bool)}, (10,), resamples=4000, rng=np.random.default_rng(2)), "ndcg", 10
    )
    values = np.where((ranks >= 1) & (ranks <= 10), 1 / np.log2(np.maximum(ranks, 1) + 1), 0)
    means = values[np.random.default_rng(3).integers(0, 400, (4000, 400))].mean(1)
    assert [row["low"], row["high"]] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.003)


def test_equal_seeds_give_equal_intervals():
    ranks, masks = np.arange(30), {"all": np.ones(30, bool)}
    first, second = (evaluate_ranks(ranks, masks, (5,), resamples=100, rng=np.random.default_rng(7)) for _ in range(2))
    assert first == second


def test_the_p_value_is_that_of_the_exact_sign_flip_test():
    ours, theirs = np.array([1, 1, 1, 1, 0, 2]), np.array([0, 0, 0, 0, 1, 2])
    # of 2^5 sign flips of (1, 1, 1, 1, -1) a sum of at least 3 in size comes up 12 times
    found = compare_ranks(ours, theirs, "hr", 1, resamples=20_000, rng=np.random.default_rng(0))
    assert found.difference == pytest.approx(3 / 6)
    assert found.p_value == pytest.approx(12 / 32, abs=0.02)
    assert found.low < found.difference < found.high


def test_a_system_does_not_differ_from_itself():
    found = compare_ranks(np.array([1, 0, 4]), np.array([1, 0, 4]), "ndcg", 10, resamples=100, rng=np.random.default_rng(0))
    assert found == (0.0, 0.0, 0.0, 1.0)


def test_a_comparison_of_different_examples_is_refused():
    with pytest.raises(ValueError, match="same examples, at least one; found 2 and 3"):
        compare_ranks(np.zeros(2, int), np.zeros(3, int), "hr", 5, resamples=100, rng=np.random.default_rng(0))


def test_recommendations_may_come_in_any_order_and_in_parts():
    batches = [_batch(["e2"], [["a", "c"]]), _batch(["e1", "e0"], [["b"], ["x", "y", "a"]])]
    assert rank_system(batches, _examples(["a", "z", "c"]), "sft").ranks.tolist() == [3, 0, 2]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([_batch(["e0"], [["a"]])], r"sft: 1 of 2 examples have no list \(first 'e1'\)"),
        ([_batch(["e0", "e9"], [["a"], ["a"]])], "sft: 'e9' is not among the 2 known ids"),
        ([_batch(["e0", "e0"], [["a"], ["a"]])], "sft: an example has more than one list"),
        ([_batch(["e0"], [["a"]]), _batch(["e0"], [["a"]])], "sft: an example has more than one list"),
    ],
)
def test_lists_that_do_not_match_the_examples_are_errors(batches, message):
    with pytest.raises(ValueError, match=message):
        rank_system(batches, _examples(["a", "b"]), "sft")


def test_coverage_counts_real_items_in_the_top_k_and_the_invalid_rate_the_rest():
    lists = rank_system([_batch(["e0", "e1"], [["a", "ghost", "b"], ["b", "a", "c"]])], _examples(["a", "b"]), "sft")
    rows = evaluate_exposure(lists, build_id_index(pa.array(["a", "b", "c", "d"])), (1, 2, 3))
    assert [(row["name"], row["k"], row["value"]) for row in rows] == [
        ("coverage", 1, 0.5),
        ("coverage", 2, 0.5),
        ("coverage", 3, 0.75),
        ("invalid_rate", 3, pytest.approx(1 / 6)),
    ]


def test_slices_follow_the_training_frequency_of_the_target():
    frequency = np.array([9, 1, 1, 1, 1, 0])
    slices = target_slices(frequency, np.array([0, 1, 5]), np.array([False, True, False]))
    assert {name: mask.tolist() for name, mask in slices.items()} == {
        "all": [True, True, True],
        "head": [True, False, False],
        "tail": [False, True, False],
        "cold": [False, False, True],
        "repeat": [False, True, False],
    }


def test_each_system_is_compared_with_all_before_it():
    examples = _examples(["a", "b"])
    systems = {name: lambda: [_batch(["e0", "e1"], [["a"], ["b"]])] for name in ("popularity", "sft", "grpo")}
    rows, comparisons = evaluate_split(
        systems, examples, build_id_index(pa.array(["a", "b"])), "test", ks=(1,), resamples=100, rng=np.random.default_rng(0)
    )
    assert {(row["system"], row["baseline"]) for row in comparisons} == {
        ("sft", "popularity"),
        ("grpo", "popularity"),
        ("grpo", "sft"),
    }
    assert {(row["system"], row["split"], row["slice"], row["name"], row["k"]) for row in rows} == {
        (system, "test", "all", name, 1) for system in systems for name in ("hr", "ndcg", "coverage", "invalid_rate")
    }
