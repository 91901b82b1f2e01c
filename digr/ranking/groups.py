"""Canonical interests as arrays: those of each item, and the steps between them in training."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy.sparse import csr_matrix

from digr.data.sequences import ranges
from digr.ranking.neighbours import Neighbours, heaviest, join_lists, pool_rows

LIFT_PRIOR = 3.0
"""Expected steps by chance that are added to the observed ones of each interest."""
MOST_LIFTS = 1000
"""Number of following interests kept for each interest, those of the largest lift."""
BLOCK_ITEMS = 65_536
"""Items whose steps are summed per chunk."""
NEXT_INTERESTS, MOST_CARRIERS, MOST_STEPS = 10, 50, 50
"""For the list of an interest: interests of the largest lift, items of each of them, and items in the list."""
CARRIER_FLOOR = 0.1
"""Added to the recent interactions of an item, so that new items get weight too."""
BLOCK_GROUPS = 4096
"""Interests whose steps to items are summed per chunk."""


class InterestGroups(NamedTuple):
    """The canonical interests of N items at one grain; P pairs of an item and an interest, of K interests in all."""

    start: Int[np.ndarray, " N1"]
    """Item i has the interests `group[start[i]:start[i + 1]]`."""
    group: Int[np.ndarray, " P"]
    share: Float32[np.ndarray, " P"]
    """Shares of an item's interests; they sum to 1 if the item has any."""
    profile: Float32[np.ndarray, " P"]
    """The shares times idf, scaled to unit length per item."""
    num_items: Int[np.ndarray, " K"]
    """Number of items that have each interest."""

    @property
    def num_groups(self) -> int:
        """K."""
        return len(self.num_items)


class Lifts(NamedTuple):
    """Log lifts of steps between interests (observed over expected by chance), stored relative to those of unseen steps."""

    start: Int[np.ndarray, " K1"]
    group: Int[np.ndarray, " Q"]
    lift: Float32[np.ndarray, " Q"]
    unseen: Float32[np.ndarray, " K"]
    """The log lift of steps that were never seen, per target interest."""


def group_items(
    item: Int[np.ndarray, " P"], group: Int[np.ndarray, " P"], weight: Float[np.ndarray, " P"], num_items: int, num_groups: int
) -> InterestGroups:
    """Gather the interests of items; weights with the same canonical interest add up.

    Args:
        item: item of each of P interests.
        group: canonical interest of each.
        weight: confidence; interests of weight 0 do not count.
    """
    kept = weight > 0
    pairs = csr_matrix((weight[kept], (item[kept], group[kept])), shape=(num_items, num_groups))
    pairs.sum_duplicates()
    owner = np.repeat(np.arange(num_items), np.diff(pairs.indptr))
    carriers = np.bincount(pairs.indices, minlength=num_groups)
    total = np.bincount(owner, weights=pairs.data, minlength=num_items)
    profile = pairs.data * np.log(num_items / np.maximum(carriers, 1))[pairs.indices]
    length = np.sqrt(np.bincount(owner, weights=profile**2, minlength=num_items))
    return InterestGroups(
        pairs.indptr.astype(np.int64),
        pairs.indices.astype(np.int32),
        (pairs.data / np.maximum(total, 1e-9)[owner]).astype(np.float32),
        (profile / np.maximum(length, 1e-9)[owner]).astype(np.float32),
        carriers,
    )


def permute_items(groups: InterestGroups, order: Int[np.ndarray, " N"]) -> InterestGroups:
    """Return groups in which item i has the interests of item `order[i]`."""
    length = np.diff(groups.start)[order]
    places = ranges(groups.start[order], length)
    start = np.concatenate([[0], np.cumsum(length)])
    return groups._replace(start=start, group=groups.group[places], share=groups.share[places], profile=groups.profile[places])


def profile_cosine(
    groups: InterestGroups, left: Int[np.ndarray, " C"], right: Int[np.ndarray, " C"]
) -> Float32[np.ndarray, " C"]:
    """Return the cosine of the profiles of C pairs of items, in [0, 1]; 0 if either has none.

    Only the interests of these items are read, so time and memory do not depend on the catalogue.
    """
    one, other = (_profiles(groups, item) for item in (left, right))
    return np.asarray(one.multiply(other).sum(axis=1), np.float32).reshape(-1)


def _profiles(groups: InterestGroups, item: Int[np.ndarray, " C"]) -> csr_matrix:
    length = groups.start[item + 1] - groups.start[item]
    places = ranges(groups.start[item], length)
    start = np.concatenate([[0], np.cumsum(length)])
    return csr_matrix((groups.profile[places], groups.group[places], start), shape=(len(item), groups.num_groups))


def fit_lifts(groups: InterestGroups, steps: Neighbours) -> Lifts:
    """Compute the log lifts of steps between interests; each step between two items is divided among their interests.

    lift(a, b) = log((C_ab + p m_b) / ((C_a + p) m_b)) with C = A' T A, C_a the sum of row a, m_b the share of all steps that
    lead to b, and p = `LIFT_PRIOR`. Steps from an item to itself are left out.

    Args:
        steps: for each item, the items that follow it and their counts, weighted by gap.
    """
    num_items, num = len(groups.start) - 1, groups.num_groups
    share = csr_matrix((groups.share.astype(np.float64), groups.group, groups.start), shape=(num_items, num))
    counted = csr_matrix((num, num))
    for first in range(0, num_items, BLOCK_ITEMS):
        end = min(first + BLOCK_ITEMS, num_items)
        inside = slice(int(steps.start[first]), int(steps.start[end]))
        item, row = np.asarray(steps.item[inside]), np.repeat(np.arange(end - first), np.diff(steps.start[first : end + 1]))
        weight = np.where(item == row + first, 0.0, steps.weight[inside])
        block = csr_matrix((weight, (row, item)), shape=(end - first, num_items))
        counted = counted + share[first:end].T @ (block @ share)
    counted = counted.tocsr()
    counted.eliminate_zeros()
    counted.sort_indices()
    row_sums, column_sums = np.asarray(counted.sum(1)).ravel(), np.asarray(counted.sum(0)).ravel()
    chance = LIFT_PRIOR * np.maximum(column_sums / max(float(column_sums.sum()), 1e-9), 1e-12)[counted.indices]
    lift = np.log((counted.data + chance) / chance)
    row = np.repeat(np.arange(num), np.diff(counted.indptr))
    kept = heaviest(row, counted.indices, lift, num, MOST_LIFTS)
    unseen = np.log(LIFT_PRIOR / (row_sums + LIFT_PRIOR)).astype(np.float32)
    return Lifts(kept.start, kept.item, kept.weight, unseen)


def interest_steps(groups: InterestGroups, lifts: Lifts, recent: Float[np.ndarray, " N"]) -> Neighbours:
    """Return for each interest the items of the interests that follow it more often than by chance.

    weight(a, j) = sum over interests b of max(lift(a, b), 0) share(j, b) sqrt(recent(j) + `CARRIER_FLOOR`). Only the first
    `NEXT_INTERESTS` interests and `MOST_CARRIERS` items of each are used, which bounds the cost.

    Args:
        recent: interactions of each item, with smaller weights for older ones.

    Returns:
        Lists of K interests.
    """
    num_items, num = len(groups.start) - 1, groups.num_groups
    owner = np.repeat(np.arange(num_items), np.diff(groups.start))
    weight = groups.share * np.sqrt(recent[owner] + CARRIER_FLOOR)
    carriers = heaviest(groups.group, owner, weight.astype(np.float32), num, MOST_CARRIERS)
    found = []
    for first in range(0, num, BLOCK_GROUPS):
        end = min(first + BLOCK_GROUPS, num)
        length = np.minimum(np.diff(lifts.start[first : end + 1]), NEXT_INTERESTS)  # the largest lifts come first
        places, row = ranges(lifts.start[first:end], length), np.repeat(np.arange(end - first), length)
        lift = lifts.lift[places] + lifts.unseen[first:end][row]
        kept = lift > 0
        pooled = pool_rows(carriers, lifts.group[places][kept], row[kept], lift[kept].astype(np.float32), num_items)
        found.append(pooled.best(end - first, MOST_STEPS))
    return join_lists(found)
