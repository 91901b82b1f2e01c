"""Diversity of a list: items that are good and unlike those before them (maximal marginal relevance)."""

import numpy as np
from jaxtyping import Float, Int


def diversify(
    relevance: Float[np.ndarray, " C"],
    vectors: Float[np.ndarray, "C D"],
    k: int,
    diversity: float,
    earlier: Float[np.ndarray, "E D"] | None = None,
) -> Int[np.ndarray, " k"]:
    """Return the rows of the k candidates that are chosen one after another by maximal marginal relevance.

    The next row is the i, of those not chosen yet, with the largest

        (1 - diversity) r(i) - diversity max_j cos(i, j)

    over the rows j chosen before; without any the second term is 0. r is the relevance scaled to [0, 1] over the candidates. This
    is equation 1 of Carbonell and Goldstein, "The use of MMR, diversity-based reranking for reordering documents and producing
    summaries", SIGIR 1998 (doi 10.1145/290941.291025), with lambda = 1 - diversity. Equal values keep the candidates' order. Time
    grows with k C D.

    Args:
        relevance: score of each of C candidates.
        vectors: of unit length; a row of zeros is unlike everything.
        k: rows wanted; fewer if there are fewer candidates.
        diversity: in [0, 1]; 0 is the order by relevance.
        earlier: vectors of items that were chosen before; None for none.
    """
    low, spread = relevance.min(initial=np.inf), np.ptp(relevance) if len(relevance) else 0.0
    gain = (1 - diversity) * ((relevance - low) / spread if spread > 0 else np.zeros(len(relevance)))
    vectors = vectors.astype(np.float32)
    nearest = np.full(len(relevance), -np.inf)
    if earlier is not None and len(earlier):
        nearest = (vectors @ earlier.astype(np.float32).T).max(axis=1).astype(np.float64)
    free = np.ones(len(relevance), bool)
    chosen = np.zeros(min(k, len(relevance)), np.int64)
    for at in range(len(chosen)):
        value = gain - diversity * np.where(np.isfinite(nearest), nearest, 0)
        chosen[at] = np.where(free, value, -np.inf).argmax()
        free[chosen[at]] = False
        nearest = np.maximum(nearest, vectors @ vectors[chosen[at]])
    return chosen


def intra_list_distance(vectors: Float[np.ndarray, "k D"]) -> float:
    """Return the mean of 1 - cos over the pairs of a list; 0 for fewer than two items."""
    count = len(vectors)
    if count < 2:
        return 0.0
    cosine = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    return float(1 - (cosine.sum() - np.trace(cosine)) / (count * (count - 1)))
