"""The requests from which a ranker learns: their rows of `histories`, the period of their statistics, and their candidates.

Features of a row come only from earlier data. Rows of the fold `before` are training rows, with statistics of the training
rows before them; rows of the fold `valid` are validation rows, with statistics of all training rows.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

from digr.config import Config
from digr.data.ids import IdIndex
from digr.data.transitions import TrainingSequences, user_begins
from digr.ranking.features import base_names, interest_names
from digr.ranking.neighbours import HistoryItems, history_items
from digr.ranking.ranker import RankingExamples
from digr.ranking.sources import SOURCES, Candidates, sources_of_families
from digr.ranking.systems import Features, System, candidates_of
from digr.tables import conform

FitRows = Literal["period", "last_step"]
FOLDS = ("before", "valid")
"""Training rows with statistics of the rows before them, and validation rows with statistics of all of training."""
TRAIN_ID = "train-"
NUMBER_DIGITS = 9


def fit_rows(config: Config) -> FitRows:
    """Return which training rows a ranker learns from, see `ranking.fit`."""
    chosen = config.ranking.fit
    if chosen == "auto":
        return "last_step" if config.data.split == "leave_one_out" else "period"
    return chosen


def row_numbers(example_ids: pa.Array | pa.ChunkedArray) -> Int[np.ndarray, " B"]:
    """Return the numbers of train rows in their split; if the split is ordered in time, larger numbers are later."""
    digits = pc.utf8_slice_codeunits(example_ids, len(TRAIN_ID), len(TRAIN_ID) + NUMBER_DIGITS)
    return digits.cast(pa.int64()).to_numpy(zero_copy_only=False)


def recent_weights(
    number: Int[np.ndarray, " B"], target: Int[np.ndarray, " B"], end: int, half_life: float, num_items: int
) -> Float[np.ndarray, " N"]:
    """Sum 0.5^(age / half-life) over the train rows of each target; age is the number of rows up to row `end`."""
    return np.bincount(target, weights=0.5 ** ((end - number) / half_life), minlength=num_items)


def is_fit_row(train: pa.Table, chosen: FitRows, first_number: int) -> Bool[np.ndarray, " B"]:
    """Mark the train rows to learn from.

    Args:
        train: train rows, each user's in time order.
        chosen: see `fit_rows`.
        first_number: number of the first row of the tail, the last rows in time.
    """
    if chosen == "period":
        return row_numbers(train["example_id"]) >= first_number
    return np.append(user_begins(train["user_id"])[1:], True) if len(train) else np.zeros(0, bool)


def without_last(sequences: TrainingSequences) -> TrainingSequences:
    """Leave out each user's last interaction."""
    filled = np.diff(sequences.start) > 0
    kept = np.ones(len(sequences.item), bool)
    kept[sequences.start[1:][filled] - 1] = False
    return TrainingSequences(sequences.user_ids, sequences.item[kept], sequences.start - np.concatenate([[0], np.cumsum(filled)]))


def histories_of(rows: pa.Table, items: IdIndex, max_history: int) -> HistoryItems:
    """Return the histories of rows of `histories`; unknown items are left out."""
    history = rows["history"].combine_chunks()
    start = np.concatenate([[0], np.cumsum(pc.list_value_length(history).to_numpy(zero_copy_only=False))]).astype(np.int64)
    return history_items(items.find(history.flatten()), start, max_history)


class Thinned(NamedTuple):
    """Candidates to learn from, with marks of the targets."""

    candidates: Candidates
    is_target: Bool[np.ndarray, " C"]


def thin(
    candidates: Candidates, target: Int[np.ndarray, " B"], systems: Sequence[System], most: int, rng: np.random.Generator
) -> Thinned:
    """Keep for each system and request the target and random other candidates of the system, `most` in all.

    Systems keep the same random candidates where they share them. A system whose sources did not propose the target keeps none.
    """
    request, is_target = candidates.request, candidates.item == target[candidates.request]
    order = np.lexsort((rng.random(len(request)), ~is_target, request))
    kept = np.zeros(len(request), bool)
    for system in systems:
        own = candidates_of(system, candidates)
        learnable = np.bincount(request[own & is_target], minlength=len(target)) > 0
        mine = order[(own & learnable[request])[order]]
        counts = np.bincount(request[mine])
        place = np.arange(len(mine)) - np.repeat(np.cumsum(counts) - counts, counts)
        kept[mine[place < most]] = True
    rows = order[kept[order]]
    return Thinned(candidates.take(rows), is_target[rows])


def example_rows(example_ids: pa.ChunkedArray, fold: str, thinned: Thinned, features: Features) -> pa.Table:
    """Return candidates to learn from as rows of `ranking_examples`."""
    candidates = thinned.candidates
    values = np.concatenate([features.base, *features.families.values()], axis=1)
    columns = {
        "example_id": example_ids.take(pa.array(candidates.request)),
        "fold": pa.array([fold] * len(candidates.item), pa.string()),
        "item": pa.array(candidates.item, pa.int32()),
        "is_target": thinned.is_target,
        "ranks": pa.FixedSizeListArray.from_arrays(pa.array(candidates.ranks.ravel()), candidates.ranks.shape[1]),
        "features": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1]),
    }
    return conform("ranking_examples", pa.table(columns), "ranking_examples")


def ranking_examples(batches: Iterable[pa.RecordBatch], system: System, families: Sequence[str], grains: int) -> RankingExamples:
    """Return the training examples of a system: candidates of its sources, with its features.

    Args:
        batches: rows of `ranking_examples`; the candidates of a request are contiguous.
        system: the system.
        families: all families of the rows, in order.
        grains: number of grains of each family.
    """
    width, own = len(base_names()), len(interest_names(grains))
    columns = list(range(width))
    if system.family:
        first = width + own * list(families).index(system.family)
        columns += range(first, first + own)
    features, ranks, is_target, begins = [], [], [], []
    last = None
    for batch in batches:
        if len(batch):
            ids = batch["example_id"]
            begins.append(np.append(ids[0] != last, np.asarray(pc.not_equal(ids[1:], ids[:-1]))))
            last = ids[-1]
            values = batch["features"].flatten().to_numpy().reshape(len(batch), -1)
            features.append(values[:, columns])
            ranks.append(batch["ranks"].flatten().to_numpy().reshape(len(batch), -1))
            is_target.append(batch["is_target"].to_numpy(zero_copy_only=False))
    if not features:
        raise ValueError("ranking_examples: no row to learn from; choose another data.split or ranking.fit")
    request = np.cumsum(np.concatenate(begins)) - 1
    target, sources = np.concatenate(is_target), (*SOURCES, *sources_of_families(families))
    candidates = Candidates(request, np.arange(len(request)), np.concatenate(ranks), sources)
    kept = candidates_of(system, candidates)
    # a request whose target none of these sources proposed would teach that targets are items that no source knows
    learnable = np.bincount(request[kept & target], minlength=int(request[-1]) + 1) > 0
    kept &= learnable[request]
    counts = np.bincount(request[kept], minlength=len(learnable))[learnable]
    start = np.concatenate([[0], np.cumsum(counts)])
    return RankingExamples(np.concatenate(features)[kept], start, target[kept])
