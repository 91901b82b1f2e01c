"""Cheap diagnostics of semantic IDs: codebook use, collisions, reconstruction, and shared prefixes of related items."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import faiss
import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int32, Int64

from digr.data.transitions import TrainingSequences, steps_of
from digr.sids.assignment import SidAssignment, group_ids
from digr.sids.fitting import Quantiser

MAX_NEIGHBOUR_QUERIES, MAX_NEIGHBOUR_BASE = 2000, 50_000
DIGITS = 6
"""Digits to which facts are rounded, so that equal runs have equal facts."""


class LevelUse(NamedTuple):
    """Use of a level's codes."""

    usage_rate: float
    """Share of the codes that are used by at least one item."""
    perplexity: float
    """exp(entropy) of the code distribution: the number of equally used codes with the same entropy."""
    gini: float
    """Gini coefficient: 0 if all codes are used equally, near 1 if few codes have all items."""


def level_use(codes: Int32[np.ndarray, " N"], size: int) -> LevelUse:
    """Measure the use of one level; `codes` are the quantiser's, `size` is the number of codes of the level."""
    counts = np.sort(np.bincount(codes, minlength=size)).astype(np.float64)
    share = counts[counts > 0] / counts.sum()
    lorenz = np.cumsum(counts) / counts.sum()
    return LevelUse(
        usage_rate=len(share) / size,
        perplexity=float(np.exp(-(share * np.log(share)).sum())),
        gini=float((size + 1 - 2 * lorenz.sum()) / size),
    )


def collision_rate(codes: Int32[np.ndarray, "N L"]) -> float:
    """Return the share of items whose codes some other item has too.

    It is stricter than LC-Rec's rate, 1 - distinct/N, which does not count one item of each colliding group.
    """
    group = group_ids(codes)
    return float((np.bincount(group)[group] > 1).mean())


def largest_collisions(
    codes: Int32[np.ndarray, "N L"], item_ids: pa.Array, num_groups: int = 10, num_items: int = 5
) -> list[dict[str, Any]]:
    """Return the largest groups of items with equal codes, as JSON values: codes, size, and ids of the first items."""
    group = group_ids(codes)
    counts = np.bincount(group)
    largest = np.lexsort((np.arange(len(counts)), -counts))[:num_groups]
    found = []
    for place in largest[counts[largest] > 1].tolist():
        rows = np.flatnonzero(group == place)
        ids = item_ids.take(pa.array(rows[:num_items])).to_pylist()
        found.append({"codes": codes[rows[0]].tolist(), "num_items": len(rows), "item_ids": ids})
    return found


def prefix_shares(left: Int32[np.ndarray, "P L"], right: Int32[np.ndarray, "P L"]) -> list[float]:
    """Return for each prefix length the share of pairs (rows) that have the same prefix."""
    return np.logical_and.accumulate(left == right, axis=1).mean(0).tolist() if len(left) else [0.0] * left.shape[1]


def chance_shares(codes: Int32[np.ndarray, "N L"]) -> list[float]:
    """Return for each prefix length the probability that two random items share the prefix."""
    groups = (group_ids(codes[:, : level + 1]) for level in range(codes.shape[1]))
    return [float(np.square(np.bincount(group) / len(codes)).sum()) for group in groups]


def neighbour_pairs(vectors: Float[np.ndarray, "N D"], k: int, seed: int) -> Int64[np.ndarray, "P 2"]:
    """Return pairs of row indices: sampled rows, each with its k nearest others by cosine.

    At most 2,000 rows are queries and at most 50,000 are searched, so the cost does not grow with the catalogue.
    """
    rng = np.random.default_rng(seed)
    base = np.sort(rng.permutation(len(vectors))[:MAX_NEIGHBOUR_BASE])
    unit = np.array(vectors[base], np.float32, order="C")
    faiss.normalize_L2(unit)
    index = faiss.IndexFlatIP(unit.shape[1])
    index.add(unit)
    asks = np.sort(rng.permutation(len(base))[:MAX_NEIGHBOUR_QUERIES])
    found = index.search(unit[asks], min(k + 1, len(base)))[1]
    # an equal vector may rank before the item itself, so the item is searched instead of dropping the first column
    keep = found != asks[:, None]
    keep &= np.cumsum(keep, axis=1) <= k
    return np.column_stack([base[np.repeat(asks, keep.sum(1))], base[found[keep]]])


def reconstruction(
    quantiser: Quantiser, vectors: Float[np.ndarray, "N D"], codes: Int32[np.ndarray, "N L"]
) -> tuple[float, float]:
    """Return mean squared error and R2 (share of explained variance) of the vectors decoded from codes."""
    error = np.square(vectors - quantiser.reconstruct(codes)).mean()
    return float(error), float(1 - error / max(np.square(vectors - vectors.mean(0)).mean(), 1e-30))


def cointeraction_shares(sequences: Iterable[TrainingSequences], codes: Int32[np.ndarray, "N L"]) -> tuple[list[float], int]:
    """Return for each prefix length the share of training steps whose two items share it, and the number of these steps.

    Steps to the same item are left out, because they tell nothing about neighbours.

    Args:
        sequences: training sequences; items are rows of `codes`. Steps from and to unknown items (-1) are left out.
    """
    equal, num_steps = np.zeros(codes.shape[1]), 0
    for steps in map(steps_of, sequences):
        moved = steps.before != steps.after
        shares = prefix_shares(codes[steps.before[moved]], codes[steps.after[moved]])
        equal += np.array(shares) * moved.sum()
        num_steps += int(moved.sum())
    return (equal / max(num_steps, 1)).tolist(), num_steps


def check_usage(usage_rates: Iterable[float], level_sizes: Iterable[int], min_usage_rate: float) -> None:
    """Check that no codebook has collapsed.

    Raises:
        ValueError: a level uses less than this share of its codes; the message names all these levels.
    """
    poor = [
        f"level {level + 1} uses {rate:.1%} of its {size} codes"
        for level, (rate, size) in enumerate(zip(usage_rates, level_sizes, strict=True))
        if rate < min_usage_rate
    ]
    if poor:
        raise ValueError(
            f"item_sids: {', '.join(poor)}; expected at least {min_usage_rate:.1%} (sids.min_usage_rate). Use smaller "
            f"sids.level_sizes, more sids.epochs or the other sids.quantiser, or lower sids.min_usage_rate"
        )


def describe_sids(
    quantiser: Quantiser,
    assigned: SidAssignment,
    vectors: Float[np.ndarray, "N D"],
    rows: Int64[np.ndarray, " N"],
    *,
    k: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """Return all diagnostics that need no interactions, as JSON values with one list entry per level.

    The use of codes, `reconstruction_r2`, `raw_collision_rate` and `raw_duplicate_rate` (LC-Rec's rate, 1 - distinct/N) refer
    to the nearest codes of every item; `collision_rate`, `assigned_reconstruction_r2` and the shared prefixes refer to the
    assigned codes without suffix codes.

    Args:
        quantiser: the quantiser of `assigned`.
        assigned: SIDs of the whole catalogue.
        vectors: vectors of some items, for reconstruction and neighbours.
        rows: rows of `assigned` to which the vectors belong.
        k: neighbours of an item.
        seed: for the sample of items whose neighbours are searched.
    """
    levels = len(quantiser.codebooks)
    codes = assigned.codes[:, :levels]
    uses = [level_use(assigned.nearest[:, level], assigned.level_sizes[level]) for level in range(levels)]
    pairs = neighbour_pairs(vectors, k, seed)
    error, r2 = reconstruction(quantiser, vectors, assigned.nearest[rows])
    suffixed = assigned.codes[:, levels] >= 0 if assigned.codes.shape[1] > levels else np.zeros(len(codes), bool)
    facts = {
        "usage_rate": [use.usage_rate for use in uses],
        "perplexity": [use.perplexity for use in uses],
        "gini": [use.gini for use in uses],
        "raw_collision_rate": collision_rate(assigned.nearest),
        "collision_rate": collision_rate(codes),
        "raw_duplicate_rate": 1 - (int(group_ids(assigned.nearest).max()) + 1) / len(codes),
        "moved_rate": float((codes != assigned.nearest).any(1).mean()),
        "suffix_rate": float(suffixed.mean()),
        "reconstruction_mse": error,
        "reconstruction_r2": r2,
        "assigned_reconstruction_r2": reconstruction(quantiser, vectors, codes[rows])[1],
        "neighbour_prefix_share": prefix_shares(codes[rows[pairs[:, 0]]], codes[rows[pairs[:, 1]]]),
        "chance_prefix_share": chance_shares(codes),
    }
    return rounded(facts)


def rounded(facts: dict[str, Any]) -> dict[str, Any]:
    """Round the numbers in facts."""
    return {
        name: [round(float(item), DIGITS) for item in value] if isinstance(value, list) else round(float(value), DIGITS)
        for name, value in facts.items()
    }
