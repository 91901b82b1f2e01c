"""The behavioural labeler: an interest is trusted if items that share it follow each other more often than by chance (RLDI).

It uses no model, only the training sequences, each step once. A phrase has the same probability for all items.
"""

from collections.abc import Iterable
from functools import partial

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from scipy.special import gammaincc, gammaincinv

from digr import artifacts
from digr.artifacts import Store
from digr.data.ids import build_id_index
from digr.data.transitions import read_sequences, steps_of
from digr.tables import flat_interests

PRIOR = 1.0
"""Transitions added to both the observed and the expected ones, so that small counts give a lift near 1."""
MIN_TRANSITIONS = 1.0
"""The labeler has no opinion if observed and expected transitions add up to less than this."""
BOUND = 0.05
"""Quantile of the lift that is its lower bound."""


def behavioural_table(store: Store, min_lift: float) -> pa.Table:
    """Return one row per phrase of the items' interests: interest, observed, expected, lift, lift_low and probability.

    Memory grows with the interests, not with the histories. `probability` is null if there are too few transitions.

    Args:
        min_lift: lift that counts as more than chance, at least 1.
    """
    items = build_id_index(artifacts.read_table(store, "items", columns=["item_id"])["item_id"])
    interests = flat_interests(artifacts.read_table(store, "interests", owner=["item"]))
    phrases = interests["interest"].combine_chunks().dictionary_encode()
    owns = csr_matrix(
        (np.ones(len(interests)), (items.find_all(interests["owner_id"], "interests"), np.asarray(phrases.indices))),
        shape=(len(items), len(phrases.dictionary)),
    )
    owns.data[:] = 1
    steps = map(steps_of, read_sequences(store, partial(items.find_all, where="histories")))
    observed, expected = transition_counts(owns, ((step.before, step.after) for step in steps))
    lift, low, probability = lift_probability(observed, expected, min_lift)
    silent = observed + expected < MIN_TRANSITIONS
    found = {"observed": observed, "expected": expected, "lift": lift, "lift_low": low}
    return pa.table({"interest": phrases.dictionary, **found, "probability": pa.array(probability, pa.float64(), mask=silent)})


def transition_counts(
    owns: csr_matrix, transitions: Iterable[tuple[Int[np.ndarray, " T"], Int[np.ndarray, " T"]]]
) -> tuple[Float[np.ndarray, " U"], Float[np.ndarray, " U"]]:
    """Count, for each phrase, the transitions between two different items that both have it, and the expected number.

    The expected number keeps how often each item is left and entered, and pairs them at random.

    Args:
        owns: 1 where an item (row) has a phrase (column).
        transitions: chunks of (item, next item).
    """
    num_items, num_phrases = owns.shape
    left, entered, observed, total = np.zeros(num_items), np.zeros(num_items), np.zeros(num_phrases), 0
    for before, after in transitions:
        moved = before != after
        before, after = before[moved], after[moved]
        left += np.bincount(before, minlength=num_items)
        entered += np.bincount(after, minlength=num_items)
        observed += np.asarray(owns[before].multiply(owns[after]).sum(axis=0)).ravel()
        total += len(before)
    by_chance = (owns.T @ left) * (owns.T @ entered) - owns.T @ (left * entered)
    return observed, by_chance / max(1, total)


def lift_probability(
    observed: Float[np.ndarray, " U"], expected: Float[np.ndarray, " U"], min_lift: float
) -> tuple[Float[np.ndarray, " U"], Float[np.ndarray, " U"], Float[np.ndarray, " U"]]:
    """Return lift, its lower bound and the probability that it is above `min_lift`.

    The count is Poisson with rate lift * expected. The prior of the lift is a gamma distribution of mean 1 with the weight of
    PRIOR expected transitions.
    """
    shape, scale = observed + PRIOR, 1 / (expected + PRIOR)
    lift = shape * scale
    return lift, gammaincinv(shape, BOUND) * scale, gammaincc(shape, min_lift / scale)
