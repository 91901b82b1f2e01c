"""Counts and back-off lists against literals and a plain loop."""

from collections import Counter
from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from digr.data.ids import IdIndex, build_id_index
from digr.data.transitions import training_sequences
from digr.evaluation.baselines import (
    BASELINES,
    TrainingCounts,
    back_off_lists,
    collect_examples,
    count_training,
    recent_items,
    recommend_baseline,
)
from digr.evaluation.metrics import evaluate_ranks, rank_system
from digr.tables import conform
from tests.real_data import real_folder

ITEMS = build_id_index(pa.array(["a", "b", "c", "d", "e"]))


TIME = pa.timestamp("ms", tz="UTC")


def _rows(rows: list[tuple[str, list[str], str]]) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "example_id": pa.array([f"x{index}" for index in range(len(rows))]),
            "user_id": pa.array([row[0] for row in rows], pa.string()),
            "split": pa.array(["train"] * len(rows), pa.string()),
            "history": pa.array([row[1] for row in rows], pa.list_(pa.string())),
            "target": pa.array([row[2] for row in rows], pa.string()),
            "target_timestamp": pa.nulls(len(rows), TIME),
            "last_timestamp": pa.nulls(len(rows), TIME),
        }
    )


# the sequences a b c and a c, as prefix examples
TRAIN = [("u", ["a"], "b"), ("u", ["a", "b"], "c"), ("v", ["a"], "c")]


def _count(*batches: pa.RecordBatch, seed: int = 0):
    return _count_among(ITEMS, batches, seed)


def _count_among(items: IdIndex, batches: Iterable[pa.RecordBatch], seed: int = 0) -> TrainingCounts:
    sequences = training_sequences(batches, partial(items.find_all, where="histories"))
    return count_training(sequences, items, np.random.default_rng(seed))


def _successors(counts, item: int) -> list[int]:
    return counts.successors[counts.offsets[item] : counts.offsets[item + 1]].tolist()


def test_each_interaction_of_prefix_examples_counts_once():
    counts = _count(_rows(TRAIN))
    assert counts.frequency.tolist() == [2, 1, 2, 0, 0]
    assert [sorted(_successors(counts, item)) for item in range(5)] == [[1, 2], [2], [], [], []]


def test_a_first_row_with_a_long_history_brings_its_inner_transitions():
    counts = _count(_rows([("u", ["a", "b", "d"], "e")]))
    assert counts.frequency.tolist() == [1, 1, 0, 1, 1]
    assert [_successors(counts, item) for item in range(5)] == [[1], [3], [], [4], []]


def test_batches_split_within_a_user_give_the_same_counts():
    whole, parts = _count(_rows(TRAIN)), _count(*(_rows(TRAIN).slice(start, 1) for start in range(3)), _rows([]))
    assert whole.frequency.tolist() == parts.frequency.tolist()
    assert [_successors(whole, item) for item in range(5)] == [_successors(parts, item) for item in range(5)]


def test_successors_are_ordered_by_count_then_popularity():
    rows = [("u", ["a"], "d"), ("v", ["a"], "d"), ("w", ["a"], "b"), ("x", ["a"], "c"), ("y", ["b"], "c")]
    assert _successors(_count(_rows(rows)), 0) == [3, 2, 1]


def test_ties_are_broken_at_random_and_not_by_id():
    orders = {tuple(_count(_rows([("u", ["a"], "a")]), seed=seed).popular[1:]) for seed in range(20)}
    assert len(orders) > 5


def test_back_off_walks_from_the_newest_item_to_the_popular_ones():
    rows = [("u", ["a"], "b"), ("v", ["a"], "b"), ("w", ["a"], "c"), ("x", ["d"], "e"), ("y", ["d"], "e"), ("z", ["d"], "e")]
    counts = _count(_rows(rows))
    recent = recent_items(pa.array([["a", "d"], ["c"], []], pa.list_(pa.string())), counts, 2)
    assert recent.tolist() == [[3, 0], [2, -1], [-1, -1]]
    popular = counts.popular.tolist()
    assert sorted(popular[:3]) == [0, 3, 4]
    lists = back_off_lists(counts, recent, 4)
    assert lists[0].tolist() == [4, 1, 2, next(item for item in popular if item not in (4, 1, 2))]
    assert lists[1].tolist() == lists[2].tolist() == popular[:4]
    assert back_off_lists(counts, recent[:, :0], 4).tolist() == [popular[:4]] * 3


def test_lists_equal_a_plain_loop_on_random_sequences():
    rng = np.random.default_rng(3)
    sequences = [rng.integers(0, 12, rng.integers(2, 9)).tolist() for _ in range(60)]
    ids = pa.array([f"i{item:02d}" for item in range(12)])
    rows = [
        (f"u{user}", sequence[:place], sequence[place])
        for user, sequence in enumerate(sequences)
        for place in range(1, len(sequence))
    ]
    named = [(user, [f"i{item:02d}" for item in history], f"i{target:02d}") for user, history, target in rows]
    counts = _count_among(build_id_index(ids), [_rows(named)])
    assert counts.frequency.tolist() == [sum(sequence.count(item) for sequence in sequences) for item in range(12)]
    standing = {item: place for place, item in enumerate(counts.popular.tolist())}
    follows = Counter((left, right) for sequence in sequences for left, right in pairwise(sequence))
    for depth in (0, 1, 3, 1000):
        found = list(recommend_baseline([_rows(named)], counts, depth, 7, rows=50))
        lists = [items for batch in found for items in batch["item_ids"].to_pylist()]
        for (_, history, _), items in zip(rows, lists, strict=True):
            wanted: list[int] = []
            for item in history[::-1][:depth]:
                after = sorted((right for left, right in follows if left == item), key=lambda x: (-follows[item, x], standing[x]))
                wanted += after[:7]
            wanted += counts.popular.tolist()
            assert items == [f"i{item:02d}" for item in dict.fromkeys(wanted)][:7]


def test_baseline_lists_hold_distinct_items_and_never_more_than_the_catalogue():
    counts = _count(_rows(TRAIN))
    for depth in BASELINES.values():
        for batch in recommend_baseline([_rows(TRAIN)], counts, depth, 50):
            assert all(sorted(items) == ITEMS.ids.to_pylist() for items in batch["item_ids"].to_pylist())


def test_examples_know_their_slices():
    counts = _count(_rows(TRAIN))
    examples = collect_examples([_rows([("u", ["a", "b"], "d"), ("v", ["c"], "c")])], counts)
    assert examples.targets.to_pylist() == ["d", "c"] and examples.user.tolist() == [0, 1]
    assert examples.slices["cold"].tolist() == [True, False]
    assert examples.slices["repeat"].tolist() == [False, True]


def test_a_different_day_is_one_of_utc_and_needs_both_times():
    minute, day = 60_000, 86_400_000
    last, target = [day - minute, day, -1, None, 0], [day, 2 * day - minute, 0, 5 * day, None]
    rows, counts = _rows([("u", ["a"], "b")] * 5), _count(_rows(TRAIN))
    assert "different_day" not in collect_examples([rows], counts).slices
    timed = rows.set_column(5, "target_timestamp", pa.array(target, TIME)).set_column(6, "last_timestamp", pa.array(last, TIME))
    slices = collect_examples([timed, rows], counts).slices
    assert slices["different_day"].tolist() == [True, False, True, False, False] + [False] * 5


def test_an_unknown_item_is_named():
    with pytest.raises(ValueError, match="histories: 'ghost' is not among the 5 known ids"):
        _count(_rows([("u", ["a", "ghost"], "b")]))


def test_an_empty_split_is_an_error():
    with pytest.raises(ValueError, match="histories, test: this split has no examples"):
        collect_examples([_rows([])], _count(_rows(TRAIN)), "histories, test")


def test_transition_counts_reach_their_known_floor_on_industrial():
    folder = Path(real_folder("amazon18_industrial_minionerec"))
    ids = pa.array(sorted(pq.read_table(folder / "items.parquet", columns=["item_id"])["item_id"].to_pylist()))
    train, held_out = (pq.read_table(folder / "splits" / f"{name}.parquet") for name in ("train", "test"))
    train = train.append_column("split", pa.array(["train"] * len(train))).sort_by("user_id").combine_chunks()
    counts = _count_among(build_id_index(ids), train.to_batches())
    named = held_out.append_column("example_id", pa.array(map(str, range(len(held_out)))))
    named = named.append_column("split", pa.array(["test"] * len(held_out)))
    (batch,) = conform("histories", named, "test").combine_chunks().to_batches()
    lists = rank_system(recommend_baseline([batch], counts, 1, 10), collect_examples([batch], counts), "floor")
    examples = collect_examples([batch], counts)
    rows, _ = evaluate_ranks(
        {"floor": lists.ranks},
        examples.user,
        counts.items.find(examples.targets),
        {"all": examples.slices["all"]},
        (10,),
        resamples=1000,
        rng=np.random.default_rng(0),
    )
    assert [row["value"] for row in rows] == [pytest.approx(0.126, abs=0.002), pytest.approx(0.097, abs=0.002)]
    # 4,533 examples of 1,987 users: over examples the standard error of NDCG@10 was printed as .0041
    assert len(np.unique(examples.user)) == 1987
    assert (rows[1]["high"] - rows[1]["low"]) / (2 * 1.96) > 0.0046
