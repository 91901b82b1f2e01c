"""One vector per item from what users did: items with the same neighbours in training sequences have similar vectors.

Pairs of items that lie near each other in a user's training sequence are counted, in both directions. How much more often than
by chance two items meet (positive pointwise mutual information) is a sparse matrix, and its strongest directions are the
vectors (Levy & Goldberg 2014, "Neural word embedding as implicit matrix factorization").
"""

import itertools
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_matrix

from digr.data.transitions import TrainingSequences, steps_of

DIM = 64
"""Most dimensions of a vector."""
MAX_GAP, DECAY = 3, 0.5
"""Interactions up to `MAX_GAP` places apart are a pair; each place more halves its weight."""
SMOOTHING = 0.75
"""Power of an item's count where chance is computed; below 1, pairs with rare items count less."""


def behaviour_vectors(sequences: Iterable[TrainingSequences], num_items: int) -> Float[np.ndarray, "N C"]:
    """Return unit vectors of `num_items` items, NaN for items that never have another item near them.

    Memory is that of the pairs that occur and of the vectors. Equal input gives equal vectors.
    """
    from sklearn.utils.extmath import randomized_svd  # takes a second to import

    counted = _count_pairs(sequences, num_items)
    pairs = (counted + counted.T).tocoo()
    counts = np.bincount(pairs.row, pairs.data, num_items)
    chance = counts**SMOOTHING / max((counts**SMOOTHING).sum(), 1e-30)
    information = np.log(pairs.data / (counts[pairs.row] * chance[pairs.col]))
    matrix = csr_matrix((np.maximum(information, 0), (pairs.row, pairs.col)), pairs.shape)
    if not matrix.nnz:
        return np.full((num_items, 1), np.nan, np.float32)
    left, strength, _ = randomized_svd(matrix, min(DIM, num_items), n_iter=7, random_state=0)
    vectors = left * np.sqrt(strength)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    vectors[counts == 0] = np.nan
    return vectors.astype(np.float32)


def _count_pairs(sequences: Iterable[TrainingSequences], num_items: int) -> csr_matrix:
    """Sum the weights of steps between different items.

    Steps are added when they are as many as the pairs so far, so that pairs are copied a few times and not once per chunk.
    """
    total, waiting, num_waiting = csr_matrix((num_items, num_items)), list[tuple[np.ndarray, ...]](), 0
    for chunk in itertools.chain(sequences, [None]):
        if chunk is not None:
            steps = steps_of(chunk, MAX_GAP)
            other = steps.before != steps.after
            waiting.append((DECAY ** (steps.gap[other] - 1.0), steps.before[other], steps.after[other]))
            num_waiting += int(other.sum())
        if waiting and (chunk is None or num_waiting > total.nnz):
            weight, before, after = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
            total, waiting, num_waiting = total + csr_matrix((weight, (before, after)), total.shape), [], 0
    return total
