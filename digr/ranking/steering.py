"""Steer a list by wishes: canonical interests, or free words that stand for the nearest canonical interests.

A wish adds its weight times `SCALE` to the scores of items that serve it, and proposes such items. Without wishes lists do not
change; the larger the weight, the more of the best items serve the wish.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float32, Int

from digr.data.sequences import ranges
from digr.ranking.groups import InterestGroups
from digr.ranking.neighbours import Neighbours, heaviest, sum_weights

SCALE = 3.0
"""Score that a wish of weight 1 adds; a ranker's scores within a request differ by a few units."""
MOST_CARRIERS, MOST_STEERED = 200, 50
"""Items kept of each canonical interest, and items that wishes propose for a request."""
NEAR_INTERESTS, MIN_COSINE = 8, 0.35
"""Most canonical interests that free words stand for, and the least cosine of each."""


class Vocabulary(NamedTuple):
    """The K canonical interests of the finest grain."""

    names: pa.Array
    """Names in lower case."""
    centroids: Float32[np.ndarray, "K D"]
    """Unit means of the vectors of their phrases."""
    carriers: Neighbours
    """Items of each canonical interest, largest share first."""


class Wish(NamedTuple):
    """Interests of which a request wants more, or less."""

    group: Int[np.ndarray, " g"]
    """Canonical interests that serve it."""
    nearness: Float[np.ndarray, " g"]
    """Nearness of each to the wish, in (0, 1]."""
    weight: float
    """Weight of the wish; negative for less."""


def carriers_of(groups: InterestGroups) -> Neighbours:
    """Return the items of each canonical interest; items with equal shares keep their order."""
    item = np.repeat(np.arange(len(groups.start) - 1), np.diff(groups.start))
    return heaviest(groups.group, item, groups.share, groups.num_groups, MOST_CARRIERS)


def find_interest(vocabulary: Vocabulary, name: str) -> int:
    """Return the canonical interest of a name, ignoring case; -1 if there is none."""
    return vocabulary.names.index(name.strip().lower()).as_py()


def wish_of_interest(group: int, weight: float) -> Wish:
    """Return the wish for a canonical interest."""
    return Wish(np.array([group]), np.ones(1), weight)


def wish_of_words(vocabulary: Vocabulary, vector: Float32[np.ndarray, " D"], weight: float) -> Wish:
    """Return the wish of free words: the nearest canonical interest has nearness 1, others their cosine divided by its.

    Args:
        vector: unit vector of the words, by the encoder of the canonical interests.
    """
    cosine = vocabulary.centroids @ vector
    near = np.argsort(-cosine, kind="stable")[:NEAR_INTERESTS]
    near = near[cosine[near] >= MIN_COSINE]
    return Wish(near, cosine[near] / max(float(cosine[near].max(initial=0)), 1e-9), weight)


def proposals(wishes: Sequence[Wish], carriers: Neighbours, num_items: int) -> Neighbours:
    """Return the items that the positive wishes of one request propose, best first."""
    wanted = [wish for wish in wishes if wish.weight > 0]
    group = np.concatenate([np.zeros(0, np.int64), *(wish.group for wish in wanted)])
    worth = np.concatenate([np.zeros(0), *(wish.weight * wish.nearness for wish in wanted)])
    length = carriers.start[group + 1] - carriers.start[group]
    places = ranges(carriers.start[group], length)
    weight = (np.repeat(worth, length) * carriers.weight[places]).astype(np.float32)
    request = np.zeros(len(places), np.int64)
    return sum_weights(request, carriers.item[places].astype(np.int64), weight, num_items).best(1, MOST_STEERED)


def steer_scores(wishes: Sequence[Wish], groups: InterestGroups, item: Int[np.ndarray, " C"]) -> Float[np.ndarray, " C"]:
    """Return the scores that the wishes of one request add to items.

    The score is the sum over wishes of `SCALE` times the weight times the largest nearness of the item's interests.
    """
    length = groups.start[item + 1] - groups.start[item]
    group = groups.group[ranges(groups.start[item], length)]
    owner = np.repeat(np.arange(len(item)), length)
    total = np.zeros(len(item))
    for wish in wishes:
        nearness = ((group[:, None] == wish.group) * wish.nearness).max(axis=1, initial=0)
        best = np.zeros(len(item))
        np.maximum.at(best, owner, nearness)
        total += SCALE * wish.weight * best
    return total
