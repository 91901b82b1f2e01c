"""What sums over examples could have been with other users: the bootstrap and the paired permutation test.

A user's examples are alike, so users are resampled, each with all its examples. Resampling examples would take every one
of them for an independent observation, and print intervals that are too narrow.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

CHUNK_CELLS = 4_000_000
"""Resamples times users whose weights are in memory at once."""
CHUNK_ROWS = 65_536
"""Examples whose columns are in memory at once; one user's examples are never split."""

Columns = Callable[[Int[np.ndarray, " b"]], Float[np.ndarray, "b F"]]
"""Gives F numbers of each of some examples."""


class Resampled(NamedTuple):
    """Sums of F columns over the examples, of which the last P are differences of two systems."""

    total: Float[np.ndarray, " F"]
    drawn: Float[np.ndarray, "R F"]
    """The sums of each resample: as many users as there are, drawn with replacement."""
    swapped: Float[np.ndarray, "R P"]
    """The sums of each permutation: the two systems are swapped for each user with probability 1/2."""


def resample_users(
    user: Int[np.ndarray, " B"], columns: Columns, num_paired: int, *, resamples: int, rng: np.random.Generator
) -> Resampled:
    """Draw bootstrap resamples and sign-flip permutations of users, the same ones for all columns.

    Users are worked through in chunks: how many draws of a resample fall into each chunk is multinomial, and they are
    uniform within it, which is the same as drawing among all users at once. With one example per user it is the usual
    resampling of examples.

    Args:
        user: user of each of B examples, in any order.
        columns: called with indices of examples, each of them once.
        num_paired: P, how many of the last columns are differences.
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
