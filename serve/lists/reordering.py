"""What a request changes about the order of its list: boosts, and diversity.

Both come after the scores of whoever makes the list: the ranker, the policy alone, or popularity. A list without them is not
touched.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int64

from digr.policy.decoding.search import Recommendation
from digr.ranking.boosting import Boost, boost_scores, boosted_items
from digr.ranking.diversity import diversify
from digr.ranking.sources import BOOST, MAX_CANDIDATES
from digr.serving.facts import unpack
from serve.contract.schemas import ItemBoost
from serve.lists.indexing import ServedIndex

if TYPE_CHECKING:
    from serve.items.catalogue import ServedRun


class ServedList(NamedTuple):
    """A list of M items as it is served."""

    places: Int[np.ndarray, " M"]
    scores: list[float]
    sources: list[list[str]]
    """Which sources proposed each item to the ranker."""
    contributions: list[dict[str, float]]
    """What each group of features, wishes and boosts add to an item's score, apart from a constant; empty if the request did not
    ask."""


class Order(NamedTuple):
    """The k best of some candidates."""

    rows: Int[np.ndarray, " k"]
    """Which candidates, best first."""
    scores: Float[np.ndarray, " k"]
    added: Float[np.ndarray, " k"]
    """What boosts added to each score."""


class Reordering(NamedTuple):
    """Boosts and diversity of a request, with the items that they mean."""

    boosts: list[Boost]
    boosted: Int[np.ndarray, " p"]
    """Places of items that positive boosts propose, best first; all of them allowed."""
    diversity: float
    item_index: ServedIndex | None
    """Index with the vectors of interests; needed for diversity."""
    earlier: Int[np.ndarray, " l"]
    """Places of the items of earlier pages."""

    def depth(self, k: int) -> int:
        """Return how many candidates are ordered anew for a list of k."""
        return max(k, MAX_CANDIDATES)

    def order(self, places: Int[np.ndarray, " C"], scores: Float[np.ndarray, " C"], k: int) -> Order:
        """Return the k best of C candidates in their new order; equal scores keep the order of the candidates."""
        added = boost_scores(self.boosts, places)
        total = scores + added
        rows = np.argsort(-total, kind="stable")[: self.depth(k)]
        if self.diversity and self.item_index is not None:
            before = self.item_index.vectors(self.earlier)
            rows = rows[diversify(total[rows], self.item_index.vectors(places[rows]), k, self.diversity, before)]
        rows = rows[:k]
        return Order(rows, total[rows], added[rows])

    def explain(self, contributions: Sequence[dict[str, float]], order: Order) -> list[dict[str, float]]:
        """Return the contributions with those of boosts, if there are any."""
        if not self.boosts:
            return list(contributions)
        return [part | {BOOST: score} for part, score in zip(contributions, order.added.round(4).tolist(), strict=True)]


def reordering_of(
    run: "ServedRun",
    boosts: Sequence[ItemBoost],
    diversity: float,
    allowed: Int64[np.ndarray, " W"] | None,
    earlier: Int[np.ndarray, " l"],
) -> Reordering | None:
    """Find the items that the boosts of a request mean; None if it asks for no other order."""
    num = run.trie.num_items
    found = [Boost(unpack(run.matching(boost.where), num), boost.weight) for boost in boosts if boost.weight]
    if not found and not diversity:
        return None
    return Reordering(
        found,
        boosted_items(found, run.popular, None if allowed is None else unpack(allowed, num)),
        diversity,
        run.item_index,
        earlier,
    )


def reorder_policy(
    found: Recommendation, boosted: Recommendation | None, reordering: Reordering, k: int, *, explain: bool
) -> ServedList:
    """Return the policy's list, and the boosted items that it does not have, in the order that a request wants."""
    lists = [found, *([boosted] if boosted else [])]
    places = np.concatenate([each.places for each in lists])
    scores = np.concatenate([np.array(each.scores) for each in lists])
    return _served(places, scores, reordering, k, explain=explain)


def reorder_popular(
    run: "ServedRun", popular: Int[np.ndarray, " M"], reordering: Reordering, k: int, *, explain: bool
) -> ServedList:
    """Return a list by popularity in the order that a request wants.

    A candidate's score is -log of its place among all items (Zipf's law), to which boosts add.

    Args:
        popular: allowed items, the most popular first.
    """
    best = popular[: reordering.depth(k)]
    places = np.concatenate([best, reordering.boosted[~np.isin(reordering.boosted, best)]])
    return _served(places, -np.log1p(run.facts.popularity[places]), reordering, k, explain=explain)


def _served(
    places: Int[np.ndarray, " C"], scores: Float[np.ndarray, " C"], reordering: Reordering, k: int, *, explain: bool
) -> ServedList:
    order = reordering.order(places, scores, k)
    nothing: list[dict[str, float]] = [{} for _ in order.rows]
    parts = reordering.explain(nothing, order) if explain else nothing
    return ServedList(places[order.rows], order.scores.tolist(), [[] for _ in order.rows], parts)
