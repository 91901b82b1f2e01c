"""Boosted trees as boxes: a leaf is a box with an interval (a side) for each feature on its path.

Scores are then a few array operations over all leaves, and SHAP values one loop, which Numba compiles at its first use on a
machine. For the few rows of a request both take a fraction of LightGBM's time.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import lightgbm as lgb
import numpy as np
from jaxtyping import Float, Float32, Int, UInt16
from numba import njit

WORD = 16
"""Bits of a word, one for each leaf of a tree; a larger tree has several words."""
BLOCK_ROWS = 256
"""Rows that are scored at once; their data stay in the processor's cache."""

_PLACES = np.full(1 << WORD, WORD, np.uint8)
"""Place of the single bit that is set; `WORD` if none is."""
_PLACES[1 << np.arange(WORD)] = np.arange(WORD)


class Leaves(NamedTuple):
    """L leaves with S sides each, from all trees."""

    word: Int[np.ndarray, " L"]
    """Number of the leaf's word among those of all trees."""
    place: Int[np.ndarray, " L"]
    """Bit of the leaf in its word."""
    value: Float[np.ndarray, " L"]
    """Value that the leaf adds to a score."""
    feature: Int[np.ndarray, "S L"]
    """Feature of each side."""
    low: Float[np.ndarray, "S L"]
    """Exclusive lower bound of each side."""
    high: Float[np.ndarray, "S L"]
    """Inclusive upper bound of each side."""
    share: Float[np.ndarray, "S L"]
    """Share of training rows that stays on the path at the nodes of this feature."""


def read_leaves(boosters: Sequence[lgb.Booster]) -> list[Leaves]:
    """Return the leaves of the boosters' mean, grouped by number of sides."""
    trees = [tree["tree_structure"] for booster in boosters for tree in booster.dump_model()["tree_info"]]
    found, words = dict[int, list[tuple[Any, ...]]](), 0
    for tree in trees:
        number = -1
        for number, (value, sides) in enumerate(_walk(tree, {})):
            row = (words + number // WORD, number % WORD, value / len(boosters), [(name, *side) for name, side in sides.items()])
            found.setdefault(len(sides), []).append(row)
        words += number // WORD + 1
    return [_stack(count, rows) for count, rows in sorted(found.items())]


_Sides = dict[int, tuple[float, float, float]]
"""Lower and upper bound of each feature on a path, and its share."""


def _walk(node: dict[str, Any], sides: _Sides) -> Iterator[tuple[float, _Sides]]:
    """Yield the value and the sides of each leaf below a node."""
    if "leaf_value" in node:
        yield node["leaf_value"], sides
        return
    assert (node["decision_type"], node["missing_type"]) == ("<=", "None"), node  # features are numbers and never missing
    feature, threshold = node["split_feature"], node["threshold"]
    low, high, share = sides.get(feature, (-np.inf, np.inf, 1.0))
    left, right = node["left_child"], node["right_child"]
    for child, ends in ((left, (low, min(high, threshold))), (right, (max(low, threshold), high))):
        count = child.get("internal_count", child.get("leaf_count"))
        yield from _walk(child, sides | {feature: (*ends, share * count / node["internal_count"])})


def _stack(num_sides: int, rows: list[tuple[Any, ...]]) -> Leaves:
    word, place, value, sides = zip(*rows, strict=True)
    feature, low, high, share = np.array(sides, float).reshape(len(rows), num_sides, 4).transpose(2, 1, 0).copy()
    return Leaves(np.array(word), np.array(place), np.array(value), feature.astype(np.int64), low, high, share)


class LeafTables(NamedTuple):
    """Bits of the leaves whose side contains a value, for every feature and interval between thresholds, in W words.

    This is QuickScorer (Lucchese et al. 2015) with precomputed conditions of each feature.
    """

    thresholds: list[Float[np.ndarray, " t"]]
    """Of each feature, ascending."""
    inside: list[UInt16[np.ndarray, "t1 W"]]
    """A bit for each leaf whose side contains values above exactly `t` thresholds."""
    value: Float[np.ndarray, "W 17"]
    """Of each leaf; 0 for none."""


def leaf_tables(groups: Sequence[Leaves], num_features: int) -> LeafTables:
    """Make the tables of all leaves."""
    values = np.zeros((1 + max(int(group.word.max()) for group in groups), WORD + 1))
    is_leaf = np.zeros((len(values), WORD), bool)
    for group in groups:
        values[group.word, group.place] = group.value
        is_leaf[group.word, group.place] = True
    no_leaf = (~is_leaf << np.arange(WORD)).sum(1).astype(np.uint16)
    thresholds, inside = [], []
    for feature in range(num_features):
        ends = np.unique(np.concatenate([side[group.feature == feature] for group in groups for side in (group.low, group.high)]))
        ends = ends[np.isfinite(ends)]
        above = np.concatenate([[-np.inf], ends])
        outside = np.repeat(no_leaf[:, None], len(above), axis=1)
        for group in groups:
            side, leaf = np.nonzero(group.feature == feature)
            is_outside = (above < group.low[side, leaf, None]) | (above >= group.high[side, leaf, None])
            np.bitwise_or.at(outside, group.word[leaf], (is_outside << group.place[leaf, None]).astype(np.uint16))
        thresholds.append(ends)
        inside.append(np.ascontiguousarray(~outside.T))
    return LeafTables(thresholds, inside, values)


def score_rows(tables: LeafTables, features: Float32[np.ndarray, "C F"]) -> Float[np.ndarray, " C"]:
    """Return for each row the sum of the values of its leaves, one per tree."""
    found, first = np.empty(len(features)), np.arange(len(tables.value)) * (WORD + 1)
    for start in range(0, len(features), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        bits = np.array(np.iinfo(np.uint16).max, np.uint16)
        for column, ends, inside in zip(features[rows].T, tables.thresholds, tables.inside, strict=True):
            bits = bits & inside.take(np.searchsorted(ends, column), axis=0)
        found[rows] = tables.value.take(first + _PLACES.take(bits)).sum(1)
    return found


def explain_rows(groups: Sequence[Leaves], features: Float32[np.ndarray, "C F"]) -> Float[np.ndarray, "C F"]:
    """Return the path-dependent SHAP values of each row (Lundberg et al. 2018).

    In a leaf of value v, the Shapley value of a side with share z is v (o - z) times the integral over t in [0, 1] of the
    product of z (1 - t) + o t over the leaf's other sides; o is 1 for a row inside and 0 outside (Owen 1972). With S sides the
    product is a polynomial of degree S - 1, for which (S + 1) // 2 points of Gauss and Legendre are exact.
    """
    columns = np.ascontiguousarray(features.T)
    found = np.zeros(columns.shape)
    for group in groups:
        _add_sides(group, *_quadrature((len(group.share) + 1) // 2), columns, found)
    return found.T


@cache
def _quadrature(num_points: int) -> tuple[Float[np.ndarray, " Q"], Float[np.ndarray, " Q"]]:
    """Return points in [0, 1] and their weights."""
    points, weights = np.polynomial.legendre.leggauss(max(num_points, 1))
    return (points + 1) / 2, weights / 2


@njit(cache=True, nogil=True)
def _add_sides(
    group: Leaves,
    points: Float[np.ndarray, " Q"],
    weights: Float[np.ndarray, " Q"],
    columns: Float32[np.ndarray, "F C"],
    found: Float[np.ndarray, "F C"],
) -> None:
    """Add the Shapley values of all sides to their features in `found`, for all rows at once to use vector instructions."""
    (num_sides, num_leaves), num_rows = group.share.shape, columns.shape[1]
    size = num_sides, num_rows
    inside, factor, product = np.empty(size), np.empty(size), np.empty(num_rows)
    for leaf in range(num_leaves):
        for side in range(num_sides):
            column, low, high = columns[group.feature[side, leaf]], group.low[side, leaf], group.high[side, leaf]
            for row in range(num_rows):
                inside[side, row] = (column[row] > low) & (column[row] <= high)
        for at in range(len(points)):
            product[:] = weights[at] * group.value[leaf]
            for side in range(num_sides):
                missed = group.share[side, leaf] * (1 - points[at])
                for row in range(num_rows):
                    factor[side, row] = missed + points[at] * inside[side, row]
                    product[row] *= factor[side, row]
            for side in range(num_sides):
                share, feature = group.share[side, leaf], group.feature[side, leaf]
                for row in range(num_rows):
                    found[feature, row] += product[row] * (inside[side, row] - share) / factor[side, row]
