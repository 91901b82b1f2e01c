"""Named sources of candidates: each proposes a bounded list for a request, and a ranker orders their union."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from digr.ranking.features import Pooled, RequestItems
from digr.ranking.neighbours import HistoryItems, Neighbours, pool_neighbours
from digr.ranking.views import View

MOST = {"history": 50, "transitions": 50, "next": 20, "cooccurrence": 50, "text": 40, "image": 40, "popular": 30}
"""Most items that a source proposes."""
SOURCES = (*MOST, "generation")
"""Sources of every request; the policy's list is as long as its beam."""
STEER, BOOST = "steer", "boost"
"""The sources of a request's wishes, and of its boosts."""
ASKED = (STEER, BOOST)
"""Sources that only some requests have."""
MOST_OF_FAMILY, MOST_OF_STEPS = 30, 20
CONTENT_DECAY = 0.6
"""Base of the weight of a history's item for neighbours by text and by interests; the exponent is its place from the end."""
MAX_CANDIDATES = 200
"""Most candidates of a request, those with the best places in any source; more only for longer lists."""


def steps_of(family: str) -> str:
    """Return the name of the source of steps between a family's interests."""
    return f"{family}_steps"


def sources_of_families(families: Sequence[str]) -> list[str]:
    """Return the sources of families: nearest items, and items by steps between interests."""
    return [source for name in families for source in (name, steps_of(name))]


class Candidates(NamedTuple):
    """C distinct items proposed to B requests, grouped by request."""

    request: Int[np.ndarray, " C"]
    item: Int[np.ndarray, " C"]
    ranks: UInt8[np.ndarray, "C S"]
    """Place of the item in the list of each source, from 1; 0 if the source did not propose it."""
    sources: tuple[str, ...]

    @property
    def pairs(self) -> RequestItems:
        """Return the pairs of which features are computed."""
        return RequestItems(self.request, self.item)

    def take(self, rows: Bool[np.ndarray, " C"] | Int[np.ndarray, " c"]) -> "Candidates":
        """Return some of the candidates."""
        return Candidates(self.request[rows], self.item[rows], self.ranks[rows], self.sources)


def propose(
    view: View,
    histories: HistoryItems,
    pooled: Pooled,
    generated: Neighbours | None = None,
    asked: Mapping[str, Neighbours] = MappingProxyType({}),
) -> Candidates:
    """Return the union of all sources' lists.

    Args:
        view: the view of the items; each of its families gives two sources, see `sources_of_families`.
        histories: histories of B requests.
        pooled: pooled weights of items after the histories, see `pool_lists`.
        generated: the policy's list of each request, best first; None for no list.
        asked: items proposed by what the requests ask for, by the sources of `ASKED`.
    """
    num_requests = len(histories.start) - 1
    lists = dict.fromkeys(SOURCES, _same_for_all(np.zeros(0, np.int64), num_requests))
    lists["history"] = _newest(histories)
    for name, weights in pooled.counts.items():
        lists[name] = weights.best(num_requests, MOST[name])
    for name, content in view.contents.items():
        lists[name] = pool_neighbours(content.neighbours, histories, CONTENT_DECAY).best(num_requests, MOST[name])
    popular = view.statistics.popular[: MOST["popular"]]
    lists["popular"] = _same_for_all(popular, num_requests)
    if generated:
        lists["generation"] = generated
    for name, family in view.families.items():
        lists[name] = pool_neighbours(family.neighbours, histories, CONTENT_DECAY).best(num_requests, MOST_OF_FAMILY)
        lists[steps_of(name)] = pooled.steps[name].best(num_requests, MOST_OF_STEPS)
    return union({**lists, **asked}, view.num_items)


def union(lists: dict[str, Neighbours], num_items: int) -> Candidates:
    """Join the lists of several sources."""
    sources = tuple(lists)
    keys, places, columns = [], [], []
    for column, found in enumerate(lists.values()):
        length = np.diff(found.start)
        request = np.repeat(np.arange(len(length)), length)
        keys.append(request * num_items + np.asarray(found.item, np.int64))
        places.append(np.minimum(np.arange(len(request)) - np.repeat(found.start[:-1], length) + 1, 255))
        columns.append(np.full(len(request), column))
    key, row = np.unique(np.concatenate(keys), return_inverse=True)
    ranks = np.zeros((len(key), len(sources)), np.uint8)
    ranks[row, np.concatenate(columns)] = np.concatenate(places)
    request, item = np.divmod(key, num_items)
    return Candidates(request, item, ranks, sources)


def choose(candidates: Candidates, sources: Sequence[str], k: int = 0) -> Bool[np.ndarray, " C"]:
    """Mark the candidates of some sources: per request the max(`MAX_CANDIDATES`, k) with the best places."""
    columns = [candidates.sources.index(name) for name in sources]
    ranks = candidates.ranks[:, columns].astype(np.int64)
    best = np.where(ranks > 0, ranks, 256).min(axis=1)
    order = np.lexsort((candidates.item, best, candidates.request))
    counts = np.bincount(candidates.request)
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(order), bool)
    chosen[order] = place < max(MAX_CANDIDATES, k)
    return chosen & (best < 256)


def _newest(histories: HistoryItems) -> Neighbours:
    """Return the distinct items of each history, newest first."""
    order = np.lexsort((histories.age, histories.request))
    request, item = histories.request[order], histories.item[order]
    _, first = np.unique(np.stack([request, item]), axis=1, return_index=True)
    first = np.sort(first)
    age = np.arange(len(first)) - np.searchsorted(request[first], request[first])
    kept = first[age < MOST["history"]]
    counts = np.bincount(request[kept], minlength=len(histories.start) - 1)
    return Neighbours(np.concatenate([[0], np.cumsum(counts)]), item[kept].astype(np.int32), np.ones(len(kept), np.float32))


def _same_for_all(items: Int[np.ndarray, " p"], num_requests: int) -> Neighbours:
    start = np.arange(num_requests + 1) * len(items)
    return Neighbours(start, np.tile(items, num_requests).astype(np.int32), np.ones(start[-1], np.float32))
