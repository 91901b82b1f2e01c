"""Items similar to an item: its neighbours by each source, fused by reciprocal ranks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from digr.ranking.neighbours import Neighbours
from digr.ranking.views import View

RANK_CONSTANT = 60
"""Added to every rank (Cormack, Clarke and Buettcher 2009); the larger, the less the first ranks count."""


class SimilarItems(NamedTuple):
    """M items, the most similar first."""

    item: Int[np.ndarray, " M"]
    score: Float[np.ndarray, " M"]
    """Sum over the sources that list an item of 1 / (`RANK_CONSTANT` + its rank there, from 1)."""
    weights: dict[str, Float32[np.ndarray, " M"]]
    """Weight of each item by source; NaN where the source does not list it. Cosines of texts, images and interests; discounted
    counts of what follows or occurs together."""


def sources_of_items(view: View) -> dict[str, Neighbours]:
    """Return the lists of neighbours by source: contents, interests, and what is counted in training."""
    contents = {str(name): content.neighbours for name, content in view.contents.items()}
    families = {name: family.neighbours for name, family in view.families.items()}
    return contents | families | dict(view.statistics.neighbours)


def similar_items(
    view: View, item: int, k: int, sources: Sequence[str], allowed: Bool[np.ndarray, " N"] | None = None
) -> SimilarItems:
    """Return the k best items of the union of an item's lists, without the item itself.

    Items that are not allowed leave the lists before ranks are counted. Equal scores keep the order of the sources, then of their
    lists. The rule is reciprocal rank fusion: Cormack, Clarke and Buettcher, "Reciprocal rank fusion outperforms Condorcet and
    individual rank learning methods", SIGIR 2009 (doi 10.1145/1571941.1572114).

    Args:
        sources: some of `sources_of_items`.
        allowed: items that may be listed; None for all.
    """
    lists = sources_of_items(view)
    found = {}
    for name in sources:
        inside = slice(int(lists[name].start[item]), int(lists[name].start[item + 1]))
        near, weight = np.asarray(lists[name].item[inside], np.int64), lists[name].weight[inside]
        kept = (near != item) if allowed is None else (near != item) & allowed[near]
        found[name] = near[kept], weight[kept]
    everything = np.concatenate([np.zeros(0, np.int64), *(near for near, _ in found.values())])
    ordered, first = np.unique(everything, return_index=True)
    place_of = np.argsort(np.argsort(first))  # of the distinct items, in the order in which the lists name them
    union = everything[np.sort(first)]
    score = np.zeros(len(union))
    weights = {name: np.full(len(union), np.nan, np.float32) for name in found}
    for name, (near, weight) in found.items():
        rows = place_of[np.searchsorted(ordered, near)]
        score[rows] += 1 / (RANK_CONSTANT + 1 + np.arange(len(rows)))
        weights[name][rows] = weight
    best = np.argsort(-score, kind="stable")[:k]
    return SimilarItems(union[best], score[best], {name: values[best] for name, values in weights.items()})
