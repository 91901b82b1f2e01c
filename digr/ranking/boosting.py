"""Boost or bury items by their attributes: a weight on all items that meet a condition.

A boost adds its weight times `SCALE`, as a wish does, to the scores of items that meet its condition, and a positive one proposes
such items. Without boosts lists do not change.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from digr.ranking.steering import SCALE

MOST_BOOSTED = 50
"""Items that boosts propose for a request."""


class Boost(NamedTuple):
    """Items of which a request wants more, or less."""

    matches: Bool[np.ndarray, " N"]
    """The items that meet the condition."""
    weight: float
    """Weight of the condition; negative to bury."""


def boost_scores(boosts: Sequence[Boost], item: Int[np.ndarray, " C"]) -> Float[np.ndarray, " C"]:
    """Return the scores that boosts add to items: the sum of `SCALE` times the weight over the conditions that an item meets."""
    total = np.zeros(len(item))
    for boost in boosts:
        total += SCALE * boost.weight * boost.matches[item]
    return total


def boosted_items(
    boosts: Sequence[Boost], popular: Int[np.ndarray, " L"], allowed: Bool[np.ndarray, " N"] | None
) -> Int[np.ndarray, " p"]:
    """Return the items that positive boosts propose: the `MOST_BOOSTED` of the largest sum of weights, popular ones first.

    An item whose sum is not positive, because it is buried too, is not proposed.

    Args:
        popular: items that may be proposed, the most popular first.
        allowed: items that may be listed; None for all.
    """
    wanted = popular if allowed is None else popular[allowed[popular]]
    named = np.zeros(len(wanted), bool)
    for boost in boosts:
        named |= boost.matches[wanted] & (boost.weight > 0)
    wanted = wanted[named]
    total = boost_scores(boosts, wanted)
    best = np.argsort(-total, kind="stable")[:MOST_BOOSTED]
    return wanted[best[total[best] > 0]]
