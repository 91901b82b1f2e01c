"""Metrics, intervals and tests against literals, brute force and resampling of examples."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from digr.data.ids import build_id_index
from digr.evaluation import resampling
from digr.evaluation.metrics import (
    INTERVAL,
    Examples,
    evaluate_exposure,
    evaluate_ranks,
    evaluate_split,
    rank_system,
    target_ranks,
    target_slices,
)


def _examples(targets: list[str], **slices: list[bool]) -> Examples:
    masks = {"all": np.ones(len(targets), bool)} | {name: np.array(mask) for name, mask in slices.items()}
    ids = build_id_index(pa.array([f"e{index}" for index in range(len(targets))]))
    return Examples(ids, np.arange(len(targets)), pa.array(targets), masks)


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


def _evaluate(ranks: dict[str, Any], user: Any = None, slices: Any = None, ks=(10,), resamples=100, seed=0, item: Any = None):
    found = {system: np.array(places) for system, places in ranks.items()}
    num = len(next(iter(found.values())))
    return evaluate_ranks(
        found,
        np.arange(num) if user is None else np.array(user),
        np.arange(num) if item is None else np.array(item),
        slices or {"all": np.ones(num, bool)},
        ks,
        resamples=resamples,
        rng=np.random.default_rng(seed),
    )


def test_hr_and_ndcg_of_hand_computed_ranks():
    rows, _ = _evaluate({"sft": [1, 3, 0, 7]}, user=[0, 0, 1, 1], ks=(5, 10))
    assert _row(rows, "hr", 5)["value"] == 0.5
    assert _row(rows, "hr", 10)["value"] == 0.75
    assert _row(rows, "ndcg", 5)["value"] == pytest.approx((1 + 0.5) / 4)
    assert _row(rows, "ndcg", 10)["value"] == pytest.approx((1 + 0.5 + 1 / 3) / 4)


def test_an_empty_slice_says_so_and_has_no_value():
    rows, _ = _evaluate({"sft": [1]}, slices={"cold": np.zeros(1, bool)}, ks=(5,))
    assert [row["num_examples"] for row in rows] == [0, 0]
    assert all(math.isnan(row[column]) for row in rows for column in ("value", "low", "high"))


def _interval(rows: list[dict], name: str = "ndcg", slice_name: str = "all") -> tuple[float, float]:
    row = _row(rows, name, 10, slice_name)
    return row["low"], row["high"]


def _ndcg(ranks: np.ndarray) -> np.ndarray:
    return np.where((ranks >= 1) & (ranks <= 10), 1 / np.log2(np.maximum(ranks, 1) + 1), 0)


def test_with_one_example_per_user_the_intervals_are_those_of_resampling_examples():
    ranks, theirs = (np.random.default_rng(seed).integers(0, 12, 400) for seed in (1, 2))
    few = np.arange(400) % 8 == 0
    rows, gains = _evaluate({"b": theirs, "a": ranks}, slices={"all": np.ones(400, bool), "few": few}, resamples=4000)
    chosen = np.random.default_rng(3).integers(0, 400, (4000, 400))
    values, differences = _ndcg(ranks), _ndcg(ranks) - _ndcg(theirs)
    mine = [row for row in rows if row["system"] == "a"]
    assert _interval(mine) == pytest.approx(np.percentile(values[chosen].mean(1), INTERVAL), abs=0.003)
    (gain,) = [gain for gain in gains if gain["name"] == "ndcg"]
    assert (gain["low"], gain["high"]) == pytest.approx(np.percentile(differences[chosen].mean(1), INTERVAL), abs=0.003)
    sample = values[few][np.random.default_rng(4).integers(0, 50, (4000, 50))].mean(1)
    assert _interval(mine, slice_name="few") == pytest.approx(np.percentile(sample, INTERVAL), abs=0.012)


def test_examples_of_one_user_do_not_narrow_an_interval_or_lower_a_p_value():
    """Examples were resampled: four equal ones of each user halved every interval."""
    rng = np.random.default_rng(1)
    ranks = {name: rng.integers(0, 12, 300) for name in ("b", "a")}
    user = rng.permutation(1200) % 300
    once, repeated = _evaluate(ranks, resamples=4000), _evaluate({k: v[user] for k, v in ranks.items()}, user, resamples=4000)
    assert _interval(repeated[0]) == pytest.approx(_interval(once[0]), abs=0.004)
    for first, second in zip(once[1], repeated[1], strict=True):
        assert second["difference"] == pytest.approx(first["difference"])
        assert [second[key] for key in ("low", "high")] == pytest.approx([first[key] for key in ("low", "high")], abs=0.006)
        assert second["p_value"] == pytest.approx(first["p_value"], abs=0.03)


def test_intervals_hold_the_truth_as_often_as_they_say_and_tests_of_nothing_are_seldom_sure():
    """Users differ in how well they are served; of 95 % intervals over examples only about three in four held the truth."""
    covered, sure, rounds = 0, 0, 200
    for seed in range(rounds):
        rng = np.random.default_rng(seed)
        user = np.repeat(np.arange(80), rng.integers(1, 12, 80))
        skill = rng.beta(0.5, 0.5, 80)[user]
        ranks = {name: (rng.random(len(user)) < skill).astype(int) for name in ("b", "a")}
        flipped = rng.random(80)[user] < 0.5  # one system or the other has luck with a user
        ranks["a"] = np.where(flipped, ranks["a"], np.where(rng.random(len(user)) < 0.5, 0, ranks["b"]))
        ranks["b"] = np.where(flipped, np.where(rng.random(len(user)) < 0.5, 0, ranks["b"]), ranks["b"])
        rows, (gain, _) = _evaluate(ranks, user, resamples=200, seed=seed)
        low, high = _interval([row for row in rows if row["system"] == "a"], "hr")
        covered += low <= 0.375 <= high
        sure += gain["p_value"] < 0.05
    assert 0.9 < covered / rounds < 0.98
    assert sure / rounds < 0.1


def test_chunks_of_users_change_no_sum_and_draw_every_user_alike(monkeypatch):
    rng = np.random.default_rng(0)
    ranks, user = rng.integers(0, 12, 500), rng.integers(0, 60, 500)
    whole = _evaluate({"a": ranks}, user, resamples=4000)[0]
    monkeypatch.setattr(resampling, "CHUNK_CELLS", 4000 * 7)
    monkeypatch.setattr(resampling, "CHUNK_ROWS", 50)
    parts = _evaluate({"a": ranks}, user, resamples=4000)[0]
    assert _row(parts, "ndcg", 10)["value"] == pytest.approx(_row(whole, "ndcg", 10)["value"])
    assert _interval(parts) == pytest.approx(_interval(whole), abs=0.003)
    seen = []
    resampling.resample_users(user, lambda rows: seen.append(rows) or np.ones((len(rows), 1)), 0, resamples=4000, rng=rng)
    assert len(seen) > 8 and sorted(np.concatenate(seen)) == list(range(500))
    counted = resampling.resample_users(np.arange(60), lambda rows: np.ones((len(rows), 1)), 0, resamples=4000, rng=rng)
    assert (counted.drawn == 60).all()


def _two_way(user: Any, item: Any, values: Any) -> float:
    """Return the standard error of the mean of one value per example."""
    table = np.array(values, float)[:, None]
    return float(resampling.two_way_errors(np.array(user), np.array(item), lambda rows: table[rows], 1)[0])


def test_two_way_errors_of_a_hand_computed_table():
    """Sums off the mean of 3: users -3, 1, 2 and items -1, 1 and pairs -2, -1, 1, 2."""
    user, item, values = [0, 0, 1, 2], [0, 1, 0, 1], [1, 2, 4, 5]
    users, items, pairs = 14 / 16 * 3 / 2, 2 / 16 * 2, 10 / 16 * 4 / 3
    assert users + items - pairs < users
    assert _two_way(user, item, values) == pytest.approx(math.sqrt(users))
    # where each example has a user of its own, users are pairs, and items add nothing to them
    assert _two_way([0, 1, 2, 3], item, values) == pytest.approx(math.sqrt(pairs))
    assert _two_way(user, user, values) == pytest.approx(math.sqrt(users))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(-4, 4)), min_size=2, max_size=12))
def test_two_way_errors_equal_sums_over_all_pairs_of_examples(rows):
    """The variance sums the products of all two examples that share a user or an item."""
    user, item, values = (np.array(column) for column in zip(*rows, strict=True))
    off = np.outer(values - values.mean(), values - values.mean())

    def variance(cluster: list) -> float:
        alike = np.array([[one == other for other in cluster] for one in cluster])
        return (off * alike).sum() / len(rows) ** 2 * len(set(cluster)) / max(len(set(cluster)) - 1, 1)

    both = list(zip(user.tolist(), item.tolist(), strict=True))
    users, items, pairs = variance(user.tolist()), variance(item.tolist()), variance(both)
    expected = math.sqrt(max(users + items - pairs, users, items, 0))
    assert _two_way(user, item, values) == pytest.approx(expected, abs=1e-6)


def test_what_no_two_examples_share_counts_once_in_the_variance():
    values = np.random.default_rng(1).normal(size=900)
    assert _two_way(np.arange(900), np.arange(900), values) == pytest.approx(values.std(ddof=1) / 30)


def test_an_item_that_alone_tells_two_systems_apart_widens_the_interval_with_items():
    """One target in twenty-five is that item; the interval over users alone knows nothing of it."""
    item = np.where(np.arange(1000) % 25 == 0, 0, np.arange(1000))
    ranks = {"theirs": np.zeros(1000, int), "ours": np.where(item == 0, 1, 0)}
    _, (gain, _) = _evaluate(ranks, item=item, resamples=1000)
    assert gain["difference"] == 0.04
    assert gain["low"] == pytest.approx(0.028, abs=0.003) and gain["high"] == pytest.approx(0.052, abs=0.003)
    # almost all of the variance is that of 40 examples that are there or not: 1.96 * .96 * 40 / 1000
    assert gain["high_with_items"] - 0.04 == 0.04 - gain["low_with_items"] == pytest.approx(0.0753, abs=0.0005)


def test_the_interval_over_users_and_items_holds_the_truth_as_often_as_it_says_where_that_over_users_does_not():
    held, rounds = {"": 0, "_with_items": 0}, 200
    for seed in range(rounds):
        rng = np.random.default_rng(seed)
        item, user = rng.integers(0, 80, 600), np.arange(600) // 2
        better = rng.random(80)[item]  # of an item: how often ours finds it; theirs finds half of all
        liked = rng.random(300)[user]
        ranks = {"theirs": (rng.random(600) < 0.5).astype(int), "ours": (rng.random(600) < (better + liked) / 2).astype(int)}
        _, (gain, _) = _evaluate(ranks, user, item=item, seed=seed)
        for name in held:
            held[name] += gain[f"low{name}"] <= 0 <= gain[f"high{name}"]
    assert held[""] / rounds < 0.93
    assert 0.92 < held["_with_items"] / rounds < 0.98


def test_chunks_of_examples_change_nothing_for_users_and_items(monkeypatch):
    rng = np.random.default_rng(0)
    user, item, values = rng.integers(0, 60, 500), rng.integers(0, 40, 500), rng.integers(-3, 4, 500)
    whole = _two_way(user, item, values)
    monkeypatch.setattr(resampling, "CHUNK_ROWS", 50)
    order = rng.permutation(500)
    assert _two_way(user, item, values) == pytest.approx(whole, rel=1e-12)
    assert _two_way(user[order], item[order], values[order]) == pytest.approx(whole, rel=1e-12)


def test_equal_seeds_give_equal_intervals():
    assert _evaluate({"a": np.arange(30)}, seed=7) == _evaluate({"a": np.arange(30)}, seed=7)


def test_the_p_value_is_that_of_the_exact_sign_flip_test():
    ranks = {"theirs": [0, 0, 0, 0, 1, 2], "ours": [1, 1, 1, 1, 0, 2]}
    # of 2^5 sign flips of (1, 1, 1, 1, -1) a sum of at least 3 in size comes up 12 times
    _, (found, _) = _evaluate(ranks, ks=(1,), resamples=20_000)
    assert (found["system"], found["baseline"], found["name"]) == ("ours", "theirs", "hr")
    assert found["difference"] == pytest.approx(3 / 6)
    assert found["p_value"] == pytest.approx(12 / 32, abs=0.02)
    assert found["low"] < found["difference"] < found["high"]


def test_a_system_does_not_differ_from_itself():
    _, comparisons = _evaluate({"a": [1, 0, 4], "b": [1, 0, 4]}, user=[0, 0, 1])
    keys = ("difference", "low", "high", "low_with_items", "high_with_items", "p_value")
    assert [[found[key] for key in keys] for found in comparisons] == [[0, 0, 0, 0, 0, 1]] * 2


def test_a_comparison_of_different_examples_is_refused():
    with pytest.raises(ValueError, match="needs a rank for each of 2 examples, at least one; found a 2, b 3"):
        _evaluate({"a": [0, 0], "b": [0, 0, 0]})


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
    different_day = pa.array([True, False, None])
    slices = target_slices(frequency, np.array([0, 1, 5]), np.array([False, True, False]), np.array([6, 5, 0]), different_day)
    assert {name: mask.tolist() for name, mask in slices.items()} == {
        "all": [True, True, True],
        "head": [True, False, False],
        "tail": [False, True, False],
        "cold": [False, False, True],
        "repeat": [False, True, False],
        "rare_last": [False, True, True],
        "others": [False, False, True],
        "different_day": [True, False, False],
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
