"""Features of a candidate for the ranker: numbers of a (history, candidate) pair, all from training rows.

The features and their constants follow a prototype on Amazon Industrial. Counts enter as logarithms; `FLOORS` are the smallest
values before a logarithm.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int

from digr.data.sequences import ranges
from digr.ranking.neighbours import HistoryItems, ItemWeights, pool_neighbours, pool_rows
from digr.ranking.overlaps import interest_overlaps
from digr.ranking.views import CONTENTS, Family, Statistics, View

DECAYS = {"transitions": 0.6, "next": 0.3, "cooccurrence": 0.6}
"""Base of the weight of a history's item; the exponent is its place from the end."""
PROFILE_DECAY, MEAN_DECAY, LIFT_DECAY = 0.9, 0.7, 0.6
FLOORS = {"transitions": 1e-6, "next": 1e-3, "cooccurrence": 1e-3, "steps": 1e-3}
POPULARITY_SHARE = 1e-3
"""Weight of popularity when it is added to transitions."""
RECENT_FLOOR = 0.3
STEP_ITEMS = 8
"""Newest items of a history whose interests' steps are pooled; older ones would weigh less than 2 %."""
CONTEXT = ("last_frequency", "history_length")
"""Features of a request rather than of a candidate; the weights of a gate depend on them."""
MONOTONE = frozenset({"transitions", "next", "cooccurrence", "recent_popularity"})
"""Features whose increase must never lower a score. An unconstrained tree would learn that an item never seen in training "must
occur later", which is true only in the held-out part of a 5-core data set."""
GROUPS = {
    "counts": ("transitions", "next", "cooccurrence"),
    "text": ("text_mean", "text_last"),
    "image": ("image_mean", "image_last"),
    "popularity": ("recent_popularity",),
    "repeat": ("repeat", "repeat_last"),
    "request": CONTEXT,
}
"""Group of each feature; features of interests are the group `interests`."""


class RequestItems(NamedTuple):
    """C pairs of a request and an item, request by request."""

    request: Int[np.ndarray, " C"]
    item: Int[np.ndarray, " C"]


def interest_names(grains: int) -> list[str]:
    """Return the names of the features of interests, in the order of `interest_features`."""
    names = [f"interest_{name}_{grain}" for grain in range(grains) for name in ("last", "profile", "lift")]
    return ["interest_mean", "interest_last", "interest_steps", *names]


def base_names() -> list[str]:
    """Return the names of the features that do not use interests, in the order of `base_features`."""
    return [name for names in GROUPS.values() for name in names]


def group_of(feature: str) -> str:
    """Return the group of a feature."""
    return next((group for group, names in GROUPS.items() if feature in names), "interests")


class Pooled(NamedTuple):
    """Pooled weights of items after B histories, from bounded lists; used by sources and features."""

    counts: Mapping[str, ItemWeights]
    """By counted source."""
    steps: Mapping[str, ItemWeights]
    """Steps between interests, by family."""


def pool_lists(view: View, histories: HistoryItems) -> Pooled:
    """Pool the lists of the histories' items and of their interests."""
    counts = {name: pool_neighbours(view.statistics.neighbours[name], histories, decay) for name, decay in DECAYS.items()}
    return Pooled(counts, {name: _pool_steps(family, histories, view.num_items) for name, family in view.families.items()})


def _pool_steps(family: Family, histories: HistoryItems, num_items: int) -> ItemWeights:
    newest = np.flatnonzero(histories.age < STEP_ITEMS)
    groups, age = family.groups[0], histories.age[newest]
    owner, place = _entries(groups.start, histories.item[newest])
    share = ((LIFT_DECAY**age)[owner] * groups.share[place]).astype(np.float32)
    return pool_rows(family.steps, groups.group[place], histories.request[newest][owner], share, num_items)


def base_features(view: View, histories: HistoryItems, pooled: Pooled, pairs: RequestItems) -> Float32[np.ndarray, "C F"]:
    """Return the features of counts, texts and images of each pair, in the order of `base_names`; 0 for missing images."""
    found = _count_features(view.statistics, histories, pooled.counts, pairs)
    nothing = [np.zeros(len(pairs.item), np.float32)] * 2
    for name in CONTENTS:
        known = view.contents.get(name)
        values = _vector_features(known.vectors, histories, pairs) if known else nothing
        found |= dict(zip(GROUPS[name], values, strict=True))
    return np.stack([found[name] for name in base_names()], axis=1).astype(np.float32)


def interest_features(
    family: Family, histories: HistoryItems, steps: ItemWeights, pairs: RequestItems
) -> Float32[np.ndarray, "C F"]:
    """Return the features of interests of each pair, in the order of `interest_names`; `steps` are the family's pooled ones."""
    found = _vector_features(family.vectors, histories, pairs)
    found.append(np.log(steps.of(*pairs) + FLOORS["steps"]))
    ends = np.searchsorted(pairs.request, np.arange(len(histories.start)))
    requests, decays = (histories.item, histories.start, pairs.item, ends), (PROFILE_DECAY, LIFT_DECAY)
    for groups, lifts in zip(family.groups, family.lifts, strict=True):
        found += [*interest_overlaps(*groups[:4], *lifts, *requests, *decays).T]
    return np.stack(found, axis=1).astype(np.float32)


def _count_features(
    statistics: Statistics, histories: HistoryItems, counts: Mapping[str, ItemWeights], pairs: RequestItems
) -> dict[str, np.ndarray]:
    """Return the features of counts: transitions, co-occurrence, recency, frequency, and whether the item is a repeat."""
    request, item = pairs
    found: dict[str, np.ndarray] = {}
    for name, weights in counts.items():
        value = weights.of(request, item).astype(np.float64)
        if name == "transitions":
            value += POPULARITY_SHARE * statistics.frequency[item] / statistics.most_frequent
        found[name] = np.log(value + FLOORS[name])
    found["recent_popularity"] = np.log(RECENT_FLOOR + statistics.recent[item])
    last = histories.last
    found["repeat"] = _distinct(histories, len(statistics.frequency)).of(request, item)
    found["repeat_last"] = item == last[request]
    found["last_frequency"] = np.log1p(np.where(last >= 0, statistics.frequency[last], 0))[request]
    found["history_length"] = np.log(np.maximum(np.diff(histories.start), 1))[request]
    return found


def _distinct(histories: HistoryItems, num_items: int) -> ItemWeights:
    key = np.unique(histories.request * num_items + histories.item)
    return ItemWeights(key, np.ones(len(key), np.float32), num_items)


def _vector_features(vectors: Float[np.ndarray, "N D"], histories: HistoryItems, pairs: RequestItems) -> list[np.ndarray]:
    """Return the cosines of a candidate with the mean of the history and with its last item."""
    both = _history_vectors(vectors, histories)
    found = np.empty((len(pairs.item), 2), np.float32)
    ends = np.searchsorted(pairs.request, np.arange(len(both) + 1)).tolist()
    for request, rows in enumerate(map(slice, ends, ends[1:])):
        found[rows] = np.einsum("cd,md->cm", _rows(vectors, pairs.item[rows]), both[request])
    return [found[:, 0], found[:, 1]]


def _history_vectors(vectors: Float[np.ndarray, "N D"], histories: HistoryItems) -> Float32[np.ndarray, "B 2 D"]:
    """Return the unit mean of each history's vectors, with larger weights for later ones, and its last item's vector."""
    both = np.zeros((len(histories.start) - 1, 2, vectors.shape[1]), np.float32)
    filled = np.flatnonzero(np.diff(histories.start))
    if len(filled):
        rows = _rows(vectors, histories.item)
        weight = (MEAN_DECAY**histories.age).astype(np.float32)[:, None]
        sums = np.add.reduceat(weight * rows, histories.start[filled], axis=0)
        both[filled, 0] = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
        both[filled, 1] = rows[histories.start[filled + 1] - 1]
    return both


def _rows(vectors: Float[np.ndarray, "N D"], items: Int[np.ndarray, " R"]) -> Float32[np.ndarray, "R D"]:
    """Return the vectors of items in fp32; PyTorch converts half precision eight times as fast as NumPy."""
    return torch.from_numpy(vectors[items]).float().numpy()


def _entries(start: Int[np.ndarray, " N1"], rows: Int[np.ndarray, " R"]) -> tuple[Int[np.ndarray, " P"], Int[np.ndarray, " P"]]:
    """Return for all entries of some rows the index of their row, and their places."""
    first = start[rows]
    length = start[rows + 1] - first
    return np.repeat(np.arange(len(rows)), length), ranges(first, length)
