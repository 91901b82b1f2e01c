"""What a ranker knows of a candidate: numbers of (history, candidate), all from training rows.

The features and their constants follow a prototype on Amazon Industrial; logarithms keep counts of any size in one range, and
`FLOORS` are the smallest values before a logarithm.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int

from digr.data.sequences import ranges
from digr.ranking.groups import InterestGroups, Lifts
from digr.ranking.neighbours import HistoryItems, ItemWeights, pool_neighbours
from digr.ranking.views import Family, Statistics, View

DECAYS = {"transitions": 0.6, "next": 0.3, "cooccurrence": 0.6}
"""Weight of a history's item as a power of its place from the end."""
PROFILE_DECAY, MEAN_DECAY, LIFT_DECAY = 0.9, 0.7, 0.6
FLOORS = {"transitions": 1e-6, "next": 1e-3, "cooccurrence": 1e-3}
POPULARITY_SHARE = 1e-3
"""Share of the popularity that is added to transitions."""
RECENT_FLOOR = 0.3
CONTEXT = ("last_frequency", "history_length")
"""Features of a request rather than of a candidate: a gate weighs the others by them."""
MONOTONE = frozenset({"transitions", "next", "cooccurrence", "recent_popularity"})
"""Features of which more must never lower a score. A free tree would learn that an item never seen in training "must occur
later", which is true of the held-out part of a 5-core data set and of nothing else."""
GROUPS = {
    "counts": ("transitions", "next", "cooccurrence"),
    "text": ("text_mean", "text_last"),
    "popularity": ("recent_popularity",),
    "repeat": ("repeat", "repeat_last"),
    "request": CONTEXT,
}
"""What a feature speaks of; features of interests are the group `interests`."""
PRODUCT_ROWS = 65_536
"""Candidates whose vectors are multiplied at once."""


class RequestItems(NamedTuple):
    """C pairs of a request and an item, request by request."""

    request: Int[np.ndarray, " C"]
    item: Int[np.ndarray, " C"]


def interest_names(grains: int) -> list[str]:
    """Return the names of the features of interests, in the order of `interest_features`."""
    names = [f"interest_{name}_{grain}" for grain in range(grains) for name in ("last", "profile", "lift")]
    return ["interest_mean", "interest_last", *names]


def base_names() -> list[str]:
    """Return the names of the features that know nothing of interests, in the order of `base_features`."""
    return [name for names in GROUPS.values() for name in names]


def group_of(feature: str) -> str:
    """Return what a feature speaks of."""
    return next((group for group, names in GROUPS.items() if feature in names), "interests")


def base_features(view: View, histories: HistoryItems, pairs: RequestItems) -> Float32[np.ndarray, "C F"]:
    """Return what counts and texts say of each pair, in the order of `base_names`."""
    found = _count_features(view.statistics, histories, pairs)
    found |= dict(zip(GROUPS["text"], _vector_features(view.text_vectors, histories, pairs), strict=True))
    return np.stack([found[name] for name in base_names()], axis=1).astype(np.float32)


def interest_features(family: Family, histories: HistoryItems, pairs: RequestItems) -> Float32[np.ndarray, "C F"]:
    """Return what interests say of each pair, in the order of `interest_names`."""
    found = _vector_features(family.vectors, histories, pairs)
    for groups, lifts in zip(family.groups, family.lifts, strict=True):
        found += _group_features(groups, lifts, histories, pairs)
    return np.stack(found, axis=1).astype(np.float32)


def _count_features(statistics: Statistics, histories: HistoryItems, pairs: RequestItems) -> dict[str, np.ndarray]:
    """Return what follows the history, what stands beside it, how recent and frequent an item is, whether it is a repeat."""
    request, item = pairs
    found: dict[str, np.ndarray] = {}
    for name, decay in DECAYS.items():
        value = pool_neighbours(statistics.neighbours[name], histories, decay).of(request, item).astype(np.float64)
        if name == "transitions":
            value += POPULARITY_SHARE * statistics.frequency[item] / statistics.most_frequent
        found[name] = np.log(value + FLOORS[name])
    found["recent_popularity"] = np.log(RECENT_FLOOR + statistics.recent[item])
    last = histories.last
    found["repeat"] = _places(histories, len(statistics.frequency)).of(request, item)
    found["repeat_last"] = item == last[request]
    found["last_frequency"] = np.log1p(np.where(last >= 0, statistics.frequency[last], 0))[request]
    found["history_length"] = np.log(np.maximum(np.diff(histories.start), 1))[request]
    return found


def _places(histories: HistoryItems, num_items: int) -> ItemWeights:
    key = np.unique(histories.request * num_items + histories.item)
    return ItemWeights(key, np.ones(len(key), np.float32), num_items)


def _vector_features(vectors: Float[np.ndarray, "N D"], histories: HistoryItems, pairs: RequestItems) -> list[np.ndarray]:
    """Return the cosines of a candidate with the mean of the history and with its last item."""
    last = histories.last
    newest = vectors[np.maximum(last, 0)].astype(np.float32) * (last >= 0)[:, None]
    both = np.stack([_means(vectors, histories), newest], axis=1)
    found = np.empty((len(pairs.item), 2), np.float32)
    for at in range(0, len(found), PRODUCT_ROWS):
        rows = slice(at, at + PRODUCT_ROWS)
        right = vectors[pairs.item[rows]].astype(np.float32)
        found[rows] = np.einsum("cmd,cd->cm", both[pairs.request[rows]], right)
    return [found[:, 0], found[:, 1]]


def _means(vectors: Float[np.ndarray, "N D"], histories: HistoryItems) -> Float32[np.ndarray, "B D"]:
    """Return the unit mean of each history's vectors, later ones weighing more."""
    weight = (MEAN_DECAY**histories.age).astype(np.float32)[:, None]
    sums = np.zeros((len(histories.start) - 1, vectors.shape[1]), np.float32)
    filled = np.flatnonzero(np.diff(histories.start))
    if len(filled):
        sums[filled] = np.add.reduceat(weight * vectors[histories.item], histories.start[filled], axis=0)
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)


def _group_features(groups: InterestGroups, lifts: Lifts, histories: HistoryItems, pairs: RequestItems) -> list[np.ndarray]:
    """Return overlap with the last item, overlap with the history's profile, and the lift of steps between interests."""
    filled = np.flatnonzero(histories.last >= 0)
    newest = HistoryItems(histories.last[filled], np.arange(len(filled) + 1))
    ones = np.ones(len(filled))
    last = _dense(groups, _spread(groups, newest.item, groups.profile, ones, filled), len(histories.start) - 1)
    spread = _spread(groups, histories.item, groups.profile, PROFILE_DECAY**histories.age, histories.request)
    profile = _dense(groups, spread, len(histories.start) - 1)
    profile /= np.maximum(np.linalg.norm(profile, axis=1, keepdims=True), 1e-9)
    wanted = _spread(groups, histories.item, groups.share, LIFT_DECAY**histories.age, histories.request)
    lift = _lifts(groups, lifts, wanted, len(histories.start) - 1)
    kinds = ((last, groups.profile), (profile, groups.profile), (lift, groups.share))
    return [_overlap(groups, dense, values, pairs) for dense, values in kinds]


_Spread = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Request, group and weight of each interest of some items."""


def _spread(groups: InterestGroups, items: np.ndarray, values: np.ndarray, weight: np.ndarray, request: np.ndarray) -> _Spread:
    length = groups.start[items + 1] - groups.start[items]
    places = ranges(groups.start[items], length)
    return np.repeat(request, length), groups.group[places], np.repeat(weight, length) * values[places]


def _dense(groups: InterestGroups, spread: _Spread, num_requests: int) -> Float32[np.ndarray, "B K"]:
    request, group, weight = spread
    size = num_requests * groups.num_groups
    summed = np.bincount(request * groups.num_groups + group, weights=weight, minlength=size)
    return summed.reshape(num_requests, groups.num_groups).astype(np.float32)


def _lifts(groups: InterestGroups, lifts: Lifts, wanted: _Spread, num_requests: int) -> Float32[np.ndarray, "B K"]:
    request, group, weight = wanted
    length = lifts.start[group + 1] - lifts.start[group]
    places = ranges(lifts.start[group], length)
    seen = _dense(
        groups, (np.repeat(request, length), lifts.group[places], np.repeat(weight, length) * lifts.lift[places]), num_requests
    )
    base = np.bincount(request, weights=weight * lifts.unseen[group], minlength=num_requests)
    return seen + base[:, None].astype(np.float32)


def _overlap(
    groups: InterestGroups, dense: Float32[np.ndarray, "B K"], values: np.ndarray, pairs: RequestItems
) -> Float[np.ndarray, " C"]:
    length = groups.start[pairs.item + 1] - groups.start[pairs.item]
    places = ranges(groups.start[pairs.item], length)
    owner = np.repeat(np.arange(len(pairs.item)), length)
    product = dense[pairs.request[owner], groups.group[places]] * values[places]
    return np.bincount(owner, weights=product, minlength=len(pairs.item))
