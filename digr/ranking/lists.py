"""Ranked lists: the ranker orders the union of all sources' candidates, given a history and the policy's list."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from digr.ranking.features import pool_lists
from digr.ranking.neighbours import HistoryItems, Neighbours, one_list
from digr.ranking.ranker import Ranker, best_of, load_ranker
from digr.ranking.sources import BOOST, STEER, Candidates, propose
from digr.ranking.steering import Wish, proposals, steer_scores
from digr.ranking.systems import System, build_features, candidates_of, families_of
from digr.ranking.views import View, load_view

BATCH_REQUESTS = 512
"""Requests per batch; the candidates of a batch are in memory at once."""


class RankedLists(NamedTuple):
    """The concatenated lists of B requests, best first."""

    candidates: Candidates
    score: Float[np.ndarray, " C"]
    """Scores of the ranker, comparable within a request."""
    features: Float[np.ndarray, "C F"]
    """Features of each item."""
    start: Int[np.ndarray, " B1"]
    """Request b has the rows `start[b]:start[b + 1]`."""


class ListRanker(NamedTuple):
    """The view of the items, and the systems' rankers for one split."""

    view: View
    rankers: Mapping[System, Ranker]

    def rank(
        self,
        histories: HistoryItems,
        generated: Neighbours | None,
        k: int,
        *,
        allowed: Bool[np.ndarray, "B N"] | None = None,
        wishes: Sequence[Wish] = (),
        carriers: Neighbours | None = None,
        boosted: Int[np.ndarray, " p"] | None = None,
    ) -> Iterator[tuple[slice, dict[System, RankedLists]]]:
        """Yield each system's k best items for `BATCH_REQUESTS` requests at a time, with the slice of these requests.

        Args:
            histories: of all requests.
            generated: the policy's lists, best first.
            k: length of a list.
            allowed: items that may be listed; None for all.
            wishes: wishes of the request, which must be the only one.
            carriers: items of each canonical interest, needed with wishes.
            boosted: items that the boosts of the request, which must be the only one, propose; None for none.
        """
        num_requests = len(histories.start) - 1
        for first in range(0, num_requests, BATCH_REQUESTS):
            end = min(first + BATCH_REQUESTS, num_requests)
            bounds = histories.start[first : end + 1]
            batch = HistoryItems(histories.item[bounds[0] : bounds[-1]], bounds - bounds[0])
            asked = {STEER: proposals(wishes, carriers, self.view.num_items)} if wishes and carriers is not None else {}
            asked |= {} if boosted is None else {BOOST: one_list(boosted)}
            pooled = pool_lists(self.view, batch)
            candidates = propose(self.view, batch, pooled, slice_lists(generated, first, end) if generated else None, asked)
            if allowed is not None:
                candidates = candidates.take(allowed[first:end][candidates.request, candidates.item])
            features = build_features(self.view, batch, pooled, candidates)
            found = {}
            for system, ranker in self.rankers.items():
                rows = np.flatnonzero(candidates_of(system, candidates, k))
                seen = features.of(system, rows)
                score = ranker.score(seen)
                if wishes and system.family:
                    score = score + steer_scores(wishes, self.view.families[system.family].groups[0], candidates.item[rows])
                best, start = best_of(score, candidates.request[rows], end - first, k)
                found[system] = RankedLists(candidates.take(rows[best]), score[best], seen[best], start)
            yield slice(first, end), found


def load_list_ranker(index: Path, rankers: Path, systems: Sequence[System], fitted: str, grains: int) -> ListRanker:
    """Load the view and the rankers for one split.

    Args:
        index: folder of `ranking_index`.
        rankers: folder of `ranker`.
        systems: systems whose rankers are loaded.
        fitted: "valid" or "test", the split that the rankers may order.
        grains: number of grains of canonical interests.
    """
    view = load_view(index, "all", families_of(systems), grains)
    models = {name: load_ranker(rankers / name / fitted) for name in dict.fromkeys(system.fitted for system in systems)}
    return ListRanker(view, {system: models[system.fitted] for system in systems})


def slice_lists(lists: Neighbours, first: int, end: int) -> Neighbours:
    """Return the lists from `first` to before `end`."""
    bounds = lists.start[first : end + 1]
    inside = slice(int(bounds[0]), int(bounds[-1]))
    return Neighbours(bounds - bounds[0], lists.item[inside], lists.weight[inside])


def source_names(candidates: Candidates, sources: Sequence[str]) -> pa.ListArray:
    """Return for each candidate which of the given sources proposed it."""
    wanted = np.isin(candidates.sources, sources)
    row, column = np.nonzero(candidates.ranks * wanted)
    ends = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(candidates.item)))])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(candidates.sources).take(pa.array(column)))
