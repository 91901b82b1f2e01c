"""Steer a list by wishes: canonical interests, or free words that are taken for the canonical interests nearest to them.

A wish adds its weight times `SCALE` to the score of an item that serves it, and proposes items that do. So without a wish nothing
changes, and the more a wish weighs the more of the best items serve it.
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
"""Score that a wish of weight 1 adds; a ranker's scores of one request differ by a few."""
MOST_CARRIERS, MOST_STEERED = 200, 50
"""Items kept of each canonical interest, and items that wishes propose for a request."""
NEAR_INTERESTS, MIN_COSINE = 8, 0.35
"""Canonical interests that free words are taken for, at most, and how near each has to be."""


class Vocabulary(NamedTuple):
    """The K canonical interests of the finest grain."""

    names: pa.Array
    """In small letters."""
    centroids: Float32[np.ndarray, "K D"]
    """Unit means of the vectors of their phrases."""
    carriers: Neighbours
    """Items that have each, those with the largest share first."""


class Wish(NamedTuple):
    """What a request wants more of, or less."""

    group: Int[np.ndarray, " g"]
    """Canonical interests that serve it."""
    nearness: Float[np.ndarray, " g"]
    """How well each does, in (0, 1]."""
    weight: float
    """Negative for less."""


def carriers_of(groups: InterestGroups) -> Neighbours:
    """Return the items of each canonical interest; of equal shares the first items stay."""
    item = np.repeat(np.arange(len(groups.start) - 1), np.diff(groups.start))
    return heaviest(groups.group, item, groups.share, groups.num_groups, MOST_CARRIERS)


def find_interest(vocabulary: Vocabulary, name: str) -> int:
    """Return the canonical interest of a name, whatever its case; -1 where there is none."""
    return vocabulary.names.index(name.strip().lower()).as_py()


def wish_of_interest(group: int, weight: float) -> Wish:
    """Return the wish for a canonical interest."""
    return Wish(np.array([group]), np.ones(1), weight)


def wish_of_words(vocabulary: Vocabulary, vector: Float32[np.ndarray, " D"], weight: float) -> Wish:
    """Return the wish for what free words mean: the nearest one counts whole, others by their cosine over its.

    Args:
        vector: of unit length, by the encoder of the canonical interests.
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
    """Return what the wishes of one request add to items' scores.

    It is the sum over wishes of `SCALE` times the weight times the nearness of the best of an item's interests.
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
