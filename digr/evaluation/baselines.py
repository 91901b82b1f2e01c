"""Popularity and transition counts: the baselines that a recommender must beat.

One rule gives all three baselines. From the newest item of a history backwards, list the items that followed each item in
training, most frequent first, and fill up with the most popular items. Using no history item this is popularity; using one,
the last-item transition counts; using all, the whole-history back-off.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from digr.data.ids import IdIndex, build_id_index
from digr.data.transitions import TrainingSequences, steps_of
from digr.evaluation.metrics import Examples, target_ranks, target_slices

BASELINES = {"popularity": 0, "transition_counts": 1, "transition_counts_history": 1000}
"""System name -> number of history items used."""

MERGED_STEPS = 1_000_000
"""Least number of steps that are added to the counts at once."""


class TrainingCounts(NamedTuple):
    """Counts of items and of their successors in the training sequences, successors sorted best first."""

    items: IdIndex
    frequency: Int[np.ndarray, " N"]
    popular: Int[np.ndarray, " N"]
    """Item indices, most frequent first."""
    offsets: Int[np.ndarray, " N+1"]
    """Successors of item i are `successors[offsets[i]:offsets[i + 1]]`."""
    successors: Int[np.ndarray, " P"]


def count_training(sequences: Iterable[TrainingSequences], items: IdIndex, rng: np.random.Generator) -> TrainingCounts:
    """Count the items and the steps between items of the training interactions, each exactly once.

    Ties are broken by popularity, then at random, never by id, which would leak the order of logs that are sorted by id
    within a day.

    Args:
        sequences: training sequences; items are places in `items`, all known.
    """
    num = len(items)
    frequency = np.zeros(num, np.int64)
    keys, counts, waiting = np.zeros(0, np.int64), np.zeros(0, np.int64), [np.zeros(0, np.int64)]
    for chunk in sequences:
        frequency += np.bincount(chunk.item, minlength=num)
        steps = steps_of(chunk)
        waiting.append(steps.before * num + steps.after)
        if sum(map(len, waiting)) > max(MERGED_STEPS, len(keys)):  # so that keys are sorted only when their number doubles
            keys, counts = _merge_counts(keys, counts, np.concatenate(waiting))
            waiting = waiting[:1]
    keys, counts = _merge_counts(keys, counts, np.concatenate(waiting))
    popular = np.lexsort((rng.permutation(num), -frequency))
    standing = np.empty(num, np.int64)
    standing[popular] = np.arange(num)
    sources, followers = keys // max(num, 1), keys % max(num, 1)
    order = np.lexsort((standing[followers], -counts, sources))
    offsets = np.searchsorted(sources[order], np.arange(num + 1))
    return TrainingCounts(items, frequency, popular, offsets, followers[order])


def recent_items(history: pa.ListArray, counts: TrainingCounts, depth: int, where: str = "histories") -> Int[np.ndarray, "B T"]:
    """Return the `depth` newest items of each history, newest first, padded with -1 to the longest."""
    flat, rows = _flat_histories(history, counts.items, where)
    lengths = np.bincount(rows, minlength=len(history))
    width = min(depth, int(lengths.max(initial=0)))
    places = np.cumsum(lengths)[:, None] - 1 - np.arange(width)
    inside = np.arange(width) < lengths[:, None]
    return np.where(inside, flat[np.where(inside, places, 0)], -1) if width else np.full((len(history), 0), -1)


def back_off_lists(counts: TrainingCounts, recent: Int[np.ndarray, "B T"], k: int) -> Int[np.ndarray, "B k"]:
    """Return k distinct items per row: successors of the newest item, then of the one before, and so on, then popular items.

    Args:
        recent: item indices, newest first, -1 for none; without columns the result is plain popularity.
        k: length of the lists, at most the size of the catalogue.
    """
    starts, ends = counts.offsets[recent], counts.offsets[recent + 1]
    places = starts[..., None] + np.arange(k)
    known = (places < ends[..., None]) & (recent[..., None] >= 0)
    followers = np.full(known.shape, -1)
    followers[known] = counts.successors[places[known]]
    popular = np.broadcast_to(counts.popular[:k], (len(recent), min(k, len(counts.popular))))
    return _first_distinct(np.concatenate([followers.reshape(len(recent), recent.shape[1] * k), popular], axis=1), k)


def recommend_baseline(
    batches: Iterable[pa.RecordBatch], counts: TrainingCounts, depth: int, k: int, rows: int = 4096
) -> Iterator[pa.RecordBatch]:
    """Yield a baseline's lists in the columns of `recommendations` (example_id, item_ids), in bounded batches.

    Args:
        batches: columns example_id and history.
        depth: number of history items used, see `BASELINES`.
    """
    k = min(k, len(counts.items))
    for batch in batches:
        for start in range(0, len(batch), rows):
            part = batch.slice(start, rows)
            lists = back_off_lists(counts, recent_items(part["history"], counts, depth), k)
            flat = counts.items.ids.take(pa.array(lists.ravel()))
            lists = pa.ListArray.from_arrays(pa.array(np.arange(0, lists.size + 1, k), pa.int32()), flat)
            yield pa.record_batch({"example_id": part["example_id"], "item_ids": lists})


def collect_examples(batches: Iterable[pa.RecordBatch], counts: TrainingCounts, where: str = "histories") -> Examples:
    """Collect ids, users, targets and slices of a split's rows, but not their histories.

    Args:
        batches: columns example_id, user_id, history, target, target_timestamp and last_timestamp.

    Raises:
        ValueError: the split is empty.
    """
    ids, users, targets, repeated, newest, different_day = [], [], [], [], [], []
    for batch in batches:
        ids.append(batch["example_id"])
        users.append(batch["user_id"])
        targets.append(batch["target"])
        repeated.append(target_ranks(batch["history"], batch["target"]) > 0)
        newest.append(recent_items(batch["history"], counts, 1, where).ravel())
        different_day.append(pc.not_equal(*(batch[name].cast(pa.date32()) for name in ("last_timestamp", "target_timestamp"))))
    if not sum(map(len, ids)):
        raise ValueError(f"{where}: this split has no examples, so nothing can be evaluated; choose another data.split")
    example_ids, target_ids = pa.concat_arrays(ids), pa.concat_arrays(targets)
    user = pa.concat_arrays(users).dictionary_encode().indices.to_numpy()
    places = counts.items.find_all(target_ids, where)
    last_frequency = counts.frequency[np.concatenate(newest)]
    slices = target_slices(counts.frequency, places, np.concatenate(repeated), last_frequency, pa.concat_arrays(different_day))
    return Examples(build_id_index(example_ids), user, target_ids, slices)


def _flat_histories(history: pa.ListArray, items: IdIndex, where: str) -> tuple[Int[np.ndarray, " F"], Int[np.ndarray, " F"]]:
    """Return the item indices of all histories, concatenated, and the row of each."""
    lengths = pc.list_value_length(history).to_numpy(zero_copy_only=False).astype(np.int64)
    return items.find_all(history.flatten(), where), np.repeat(np.arange(len(history)), lengths)


def _merge_counts(
    keys: Int[np.ndarray, " P"], counts: Int[np.ndarray, " P"], more: Int[np.ndarray, " F"]
) -> tuple[Int[np.ndarray, " Q"], Int[np.ndarray, " Q"]]:
    merged, inverse = np.unique(np.concatenate([keys, more]), return_inverse=True)
    weights = np.concatenate([counts, np.ones(len(more), np.int64)])
    return merged, np.bincount(inverse, weights=weights, minlength=len(merged)).astype(np.int64)


def _first_distinct(lists: Int[np.ndarray, "B C"], k: int) -> Int[np.ndarray, "B k"]:
    """Keep the first k distinct non-negative values of each row, in order."""
    order = np.argsort(lists, axis=1, kind="stable")
    ranked = np.take_along_axis(lists, order, axis=1)
    fresh = np.ones_like(ranked, bool)
    fresh[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    keep = np.empty_like(fresh)
    np.put_along_axis(keep, order, fresh & (ranked >= 0), axis=1)
    chosen = np.argsort(~keep, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(lists, chosen, axis=1)
