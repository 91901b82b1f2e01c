"""Count weighted pairs of items in training sequences, for the sources `transitions`, `next` and `cooccurrence`.

A pair of interactions of a user adds weight to the later item in the list of the earlier one, less if more interactions lie
between them, and a smaller weight to the earlier item in the list of the later one.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from digr.data.transitions import TrainingSequences, steps_of
from digr.ranking.neighbours import Neighbours, heaviest
from digr.ranking.views import COUNTED


class PairRule(NamedTuple):
    """Weights of pairs of interactions, and the scale of a list."""

    max_gap: int
    decay: float
    """Factor for each interaction between the two."""
    backward: float
    """Weight of the backward direction (earlier item in the list of the later one), relative to the forward one."""
    power: float
    """A list is divided by the sum of its weights to this power."""


RULES = {
    "transitions": PairRule(max_gap=3, decay=0.5, backward=0.3, power=0.5),
    "next": PairRule(max_gap=1, decay=1.0, backward=0.0, power=1.0),
    "cooccurrence": PairRule(max_gap=8, decay=0.9, backward=1.0, power=0.5),
}
"""The counted sources. `cooccurrence` is scaled by both items' frequencies, so its weights are cosines."""
STEPS = "steps"
"""Name of the unscaled transitions, from which steps between interests are counted."""
assert tuple(RULES) == COUNTED
MAX_GAP = max(rule.max_gap for rule in RULES.values())


class Pairs(NamedTuple):
    """Weights of P pairs of items, each pair once, sorted."""

    before: Int[np.ndarray, " P"]
    after: Int[np.ndarray, " P"]
    weight: Float[np.ndarray, "P R"]
    """One column for each of `RULES`."""


def count_pairs(sequences: TrainingSequences, num_items: int) -> Pairs:
    """Compute the weights of all pairs of items in the users' sequences."""
    steps = steps_of(sequences, MAX_GAP)
    columns = []
    for rule in RULES.values():
        weight = np.where(steps.gap <= rule.max_gap, rule.decay ** (steps.gap - 1.0), 0.0)
        columns.append(np.concatenate([weight, rule.backward * weight]))
    before = np.concatenate([steps.before, steps.after])
    after = np.concatenate([steps.after, steps.before])
    return _merge(before * num_items + after, np.stack(columns, 1), num_items)


def merge_pairs(parts: Iterable[Pairs], num_items: int) -> Pairs:
    """Sum pairs that were counted separately."""
    parts = [Pairs(*(np.zeros(0, np.int64),) * 2, np.zeros((0, len(RULES)))), *parts]
    keys = np.concatenate([part.before.astype(np.int64) * num_items + part.after for part in parts])
    return _merge(keys, np.concatenate([part.weight for part in parts]), num_items)


def _merge(keys: Int[np.ndarray, " P"], weight: Float[np.ndarray, "P R"], num_items: int) -> Pairs:
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    summed = np.add.reduceat(weight[order], first, axis=0) if len(first) else weight[:0]
    return Pairs(keys[first] // num_items, keys[first] % num_items, summed)


def pairs_table(pairs: Pairs, period: str, part: Int[np.ndarray, " P"]) -> pa.Table:
    """Return pairs as rows that Ray Data can sort by the part of the earlier item."""
    weights = {name: pa.array(pairs.weight[:, column], pa.float32()) for column, name in enumerate(RULES)}
    columns = {"before": pa.array(pairs.before, pa.int32()), "after": pa.array(pairs.after, pa.int32())}
    period_column = pa.array([period] * len(part), pa.string())
    return pa.table({"part": pa.array(part, pa.int32()), "period": period_column, **columns, **weights})


def pairs_of_table(rows: pa.Table) -> Pairs:
    """Return the pairs of one period; a pair may occur several times."""
    weight = np.stack([rows[name].to_numpy().astype(np.float64) for name in RULES], 1)
    return Pairs(rows["before"].to_numpy().astype(np.int64), rows["after"].to_numpy().astype(np.int64), weight)


def counted_lists(pairs: Pairs, first: int, end: int, frequency: Int[np.ndarray, " N"], most: int) -> dict[str, Neighbours]:
    """Return the lists of the items `first` up to `end` for each of `RULES`, and `steps`, the unscaled transitions.

    Args:
        pairs: all pairs whose earlier item is one of these items.
        frequency: training interactions of each item of the catalogue.
        most: maximal length of a list.
    """
    found, row = {}, pairs.before - first
    for number, (name, rule) in enumerate(RULES.items()):
        weight = pairs.weight[:, number]
        if name == "cooccurrence":
            scaled = weight / np.sqrt(np.maximum(frequency[pairs.before] * frequency[pairs.after], 1))
        else:
            total = np.bincount(row, weights=weight, minlength=end - first)
            scaled = weight / np.maximum(total[row], 1e-9) ** rule.power
        kept = weight > 0
        found[name] = heaviest(row[kept], pairs.after[kept], scaled[kept].astype(np.float32), end - first, most)
        if name == "transitions":
            found[STEPS] = heaviest(row[kept], pairs.after[kept], weight[kept].astype(np.float32), end - first, most)
    return found
