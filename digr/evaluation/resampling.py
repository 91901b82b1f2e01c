"""Uncertainty of sums over examples: the bootstrap over users and the paired permutation test.

Examples of a user are correlated, so users are resampled, each with all its examples. Resampling examples would treat them as
independent and give intervals that are too narrow. Examples with the same target item are correlated too: for conclusions
about other items, the errors of differences include the variance between target items as well as between users.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

CHUNK_CELLS = 4_000_000
"""Most weights (resamples times users) in memory at once."""
CHUNK_ROWS = 16_384
"""Examples whose columns are in memory at once; the examples of a user, or of an item, are never split."""

Columns = Callable[[Int[np.ndarray, " b"]], Float[np.ndarray, "b F"]]
"""Returns F numbers for each of the given examples."""


class Resampled(NamedTuple):
    """Sums of F columns over the examples; the last P columns are differences of two systems."""

    total: Float[np.ndarray, " F"]
    drawn: Float[np.ndarray, "R F"]
    """The sums of each resample: as many users as there are, drawn with replacement."""
    swapped: Float[np.ndarray, "R P"]
    """The sums of each permutation: the two systems are swapped for each user with probability 1/2."""


def resample_users(
    user: Int[np.ndarray, " B"], columns: Columns, num_paired: int, *, resamples: int, rng: np.random.Generator
) -> Resampled:
    """Draw bootstrap resamples and sign-flip permutations of users, the same ones for all columns.

    Users are processed in chunks: the number of draws in each chunk is multinomial, and draws are uniform within a chunk,
    which is equivalent to drawing from all users at once. With one example per user this is the usual resampling of examples.

    Args:
        user: user of each of B examples, in any order.
        columns: called with indices of examples, each of them once.
        num_paired: P, the number of last columns that are differences.
    """
    order = np.argsort(user, kind="stable")
    begins = np.flatnonzero(np.diff(user[order], prepend=-1))
    firsts = np.arange(len(begins))
    chunk = begins // CHUNK_ROWS + firsts // max(1, CHUNK_CELLS // resamples)
    bounds = np.append(np.flatnonzero(np.diff(chunk, prepend=-1)), len(begins))
    sizes = np.diff(bounds)
    draws = rng.multinomial(len(begins), sizes / max(1, len(begins)), size=resamples)
    ends = np.append(begins, len(order))
    total, drawn, swapped = 0.0, 0.0, 0.0
    for number, (start, size) in enumerate(zip(bounds.tolist(), sizes.tolist(), strict=False)):
        rows = order[ends[start] : ends[start + size]]
        sums = np.add.reduceat(columns(rows), begins[start : start + size] - begins[start], axis=0)
        resample = np.repeat(np.arange(resamples), draws[:, number])
        cells = resample * size + rng.integers(0, size, len(resample))
        weights = np.bincount(cells, minlength=resamples * size).reshape(resamples, size)
        signs = 2.0 * rng.integers(0, 2, (resamples, size), dtype=np.int8) - 1
        total = total + sums.sum(axis=0)
        drawn = drawn + weights.astype(np.float64) @ sums
        swapped = swapped + signs @ sums[:, sums.shape[1] - num_paired :]
    return Resampled(np.asarray(total), np.asarray(drawn), np.asarray(swapped))


def two_way_errors(
    user: Int[np.ndarray, " B"], item: Int[np.ndarray, " B"], columns: Columns, num_paired: int
) -> Float[np.ndarray, " P"]:
    """Return the standard errors of the mean differences if both users and target items are resampled.

    The variance is that between users, plus that between items, minus that between (user, item) pairs, which the two others
    count twice (Cameron, Gelbach & Miller 2011, "Robust inference with multiway clustering"); at least that of users or items
    alone. It needs many users and many items: with tens of either, intervals are somewhat too narrow.

    Args:
        user: user of each of B examples.
        item: target item of each example.
        columns: called with indices of examples, each of them once for each of the three variances.
        num_paired: P, the number of last columns that are differences.
    """
    pair = np.unique(np.stack([user, item]), axis=1, return_inverse=True)[1].reshape(-1)
    users, items, pairs = (_cluster_variance(cluster, columns, num_paired) for cluster in (user, item, pair))
    return np.sqrt(np.maximum(users + items - pairs, np.maximum(users, items)))


def _cluster_variance(cluster: Int[np.ndarray, " B"], columns: Columns, num_paired: int) -> Float[np.ndarray, " P"]:
    """Return the variance of the means of columns if whole clusters of examples are resampled."""
    order = np.argsort(cluster, kind="stable")
    begins = np.flatnonzero(np.diff(cluster[order], prepend=-1))
    sizes = np.diff(begins, append=len(order))
    bounds = np.append(np.flatnonzero(np.diff(begins // CHUNK_ROWS, prepend=-1)), len(begins))
    ends = np.append(begins, len(order))
    total, squares, mixed = np.zeros(num_paired), np.zeros(num_paired), np.zeros(num_paired)
    for first, last in itertools.pairwise(bounds.tolist()):
        found = columns(order[ends[first] : ends[last]])
        sums = np.add.reduceat(found[:, found.shape[1] - num_paired :], begins[first:last] - begins[first], axis=0)
        total += sums.sum(axis=0)
        squares += (sums**2).sum(axis=0)
        mixed += sizes[first:last] @ sums
    mean, num = total / len(order), len(begins)
    # squared deviations of each cluster's sum, expanded so that the mean need not be known before
    spread = squares - 2 * mean * mixed + mean**2 * (sizes.astype(np.float64) ** 2).sum()
    return np.maximum(spread, 0) / len(order) ** 2 * num / max(num - 1, 1)
