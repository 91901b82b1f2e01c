"""What sums over examples could have been with other users: the bootstrap and the paired permutation test.

A user's examples are alike, so users are resampled, each with all its examples. Resampling examples would take every one
of them for an independent observation, and print intervals that are too narrow. Examples with the same target item are alike
too: for what would hold of other items as well, users and target items are resampled.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt64

CHUNK_CELLS = 4_000_000
"""Resamples times users, or examples, whose weights are in memory at once."""
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


def resample_users_and_items(
    user: Int[np.ndarray, " B"],
    item: Int[np.ndarray, " B"],
    columns: Columns,
    num_paired: int,
    *,
    resamples: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "R P"]:
    """Return the mean differences over the examples of each resample of users and target items, NaN where it has none.

    An example's weight is the product of its user's and its item's (Owen & Eckles 2012, "Bootstrapping data arrays of arbitrary
    order"), each "double or nothing": 0 or 2, with the mean and variance of drawing with replacement. So a resample has the
    examples of which it keeps the user and the item, each kept with probability 1/2.

    No crossed bootstrap is exact, and this one is conservative: what is of an example alone, and neither of its user nor of its
    item, counts three times in the variance. An interval is up to 1.7 times too wide where few examples share either.

    Args:
        user: user of each of B examples.
        item: target item of each.
        columns: called with indices of examples, each of them once.
        num_paired: P, how many of the last columns are differences.
    """
    seeds = rng.integers(2**64, size=2, dtype=np.uint64)
    step = max(1, CHUNK_CELLS // resamples)
    sums, counts = np.zeros((resamples, num_paired)), np.zeros(resamples, np.int64)
    for start in range(0, len(user), step):
        rows = np.arange(start, min(start + step, len(user)))
        both = _coins(user[rows], resamples, seeds[0]) & _coins(item[rows], resamples, seeds[1])
        kept = np.unpackbits(both.view(np.uint8), axis=1, count=resamples)
        found = columns(rows)
        sums += kept.T.astype(np.float64) @ found[:, found.shape[1] - num_paired :]
        counts += kept.sum(axis=0, dtype=np.int64)
    return sums / np.where(counts > 0, counts, np.nan)[:, None]


def _coins(number: Int[np.ndarray, " b"], resamples: int, seed: np.uint64) -> UInt64[np.ndarray, "b W"]:
    """Toss a fair coin for each number and resample, 64 to a word.

    Equal numbers have equal coins whenever they are asked for, so that none are kept: the words are those of SplitMix64
    (Steele et al. 2014), which gives any word of its sequence without those before it.
    """
    words = -(-resamples // 64)
    place = number.astype(np.uint64)[:, None] * np.uint64(words) + np.arange(1, words + 1, dtype=np.uint64)
    mixed = seed + place * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
