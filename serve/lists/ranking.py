"""The ranker of a served run: it orders the candidates of all sources, of which the policy's beam is one.

The ranker and the other sources do not know an item added after the run; it keeps its place in the policy's list.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int64

from digr import artifacts
from digr.artifacts import Store
from digr.config.models import EncoderConfig
from digr.interests.canonical import group_names
from digr.policy.decoding.search import Recommendation
from digr.ranking.features import group_of
from digr.ranking.lists import ListRanker, RankedLists, load_list_ranker, source_names
from digr.ranking.neighbours import HistoryItems, Neighbours, one_list
from digr.ranking.sources import ASKED, BOOST, STEER
from digr.ranking.steering import Vocabulary, Wish, find_interest, steer_scores, wish_of_interest, wish_of_words
from digr.ranking.systems import SERVED, feature_names, sources_of
from digr.ranking.views import load_array, load_arrays
from digr.serving.facts import unpack
from serve.contract.schemas import Steer
from serve.items.encoders import get_encoder
from serve.lists.indexing import ServedIndex
from serve.lists.reordering import Order, Reordering, ServedList


class RunRanker(NamedTuple):
    """A run's `ranking_index` and `ranker`; loaded once and kept when items are added."""

    lists: ListRanker
    features: list[str]
    vocabulary: Vocabulary
    """Interests that a wish may name."""
    encoder: EncoderConfig
    """Encoder of the canonical interests."""


class ServedRanker(NamedTuple):
    """A run's ranker, with the index in which it finds the served items."""

    ranker: RunRanker
    item_index: ServedIndex


def load_run_ranker(store: Store) -> RunRanker | None:
    """Load the ranker of a run; return None if it has none."""
    manifest = artifacts.read_manifest(store, "ranker")
    if manifest is None:
        return None
    artifacts.check_lineage(store, "ranker", ["ranking_index", "items"])
    grains = len(manifest.config["ranking"]["interest_cosines"])
    with artifacts.local_files(store, "ranking_index") as index, artifacts.local_files(store, "ranker") as rankers:
        lists = load_list_ranker(index, rankers, [SERVED], "test", grains)
        carriers = load_arrays(Neighbours, index, f"{SERVED.family}.carriers")
        centroids = load_array(index, f"{SERVED.family}.centroids")
    named = artifacts.read_table(store, "canonical_interests", ["groups", "names"])
    vocabulary = Vocabulary(group_names(named, 0), centroids, carriers)
    chosen = artifacts.require(store, "ranking_index").config["embeddings"]["encoder"]
    names = feature_names(SERVED, grains)
    # compile Numba's functions now, so that no request waits for it
    next(lists.rank(HistoryItems(np.zeros(1, np.int64), np.array([0, 1])), None, 1))
    lists.rankers[SERVED].contributions(np.zeros((1, len(names)), np.float32))
    return RunRanker(lists, names, vocabulary, EncoderConfig.model_validate(chosen))


def wishes_of(ranker: RunRanker, steer: Sequence[Steer]) -> list[Wish]:
    """Find the canonical interests that the wishes of a request mean.

    Raises:
        KeyError: a named interest is not a canonical interest of the run.
    """
    found = []
    words = [wish.text for wish in steer if wish.text is not None]
    vectors = iter(get_encoder(ranker.encoder)(words) if words else [])
    for wish in steer:
        if wish.text is not None:
            found.append(wish_of_words(ranker.vocabulary, next(vectors), wish.weight))
            continue
        group = find_interest(ranker.vocabulary, wish.interest or "")
        if group < 0:
            raise KeyError(wish.interest)
        found.append(wish_of_interest(group, wish.weight))
    return found


def rank(
    served: ServedRanker,
    history: Int[np.ndarray, " T"],
    found: Recommendation,
    k: int,
    allowed: Int64[np.ndarray, " W"] | None,
    *,
    explain: bool,
    wishes: Sequence[Wish] = (),
    reordering: Reordering | None = None,
    later: Sequence[int] = (),
) -> ServedList:
    """Rank the candidates that all sources propose for a history.

    Args:
        history: places of its items, oldest first.
        found: the policy's list, as long as its beam.
        k: items listed, as many as the policy found at least.
        allowed: items that may be listed, as bits of words; None for all.
        explain: whether to compute contributions.
        wishes: the request's, already translated.
        reordering: boosts and diversity of the request; None for neither.
        later: places of boosted items that came after the run, of those that `found` does not have; best first.
    """
    depth = k if reordering is None else reordering.depth(k)
    made = _ranked(served, history, found, depth, allowed=allowed, wishes=wishes, reordering=reordering)
    places, scores, rows = _with_later_items(served.item_index, made, [*found.places[:depth].tolist(), *later])
    order = reordering.order(places, scores, k) if reordering else Order(np.arange(len(places))[:k], scores[:k], np.zeros(0))
    places, rows = places[order.rows], rows[order.rows]
    known = rows[rows >= 0]
    sources = iter(source_names(made.candidates.take(known), [*sources_of(SERVED), *ASKED]).to_pylist())
    asked = np.isin(places, later).tolist()
    named = [
        next(sources) if row >= 0 else [BOOST if boosted else "generation"] for row, boosted in zip(rows, asked, strict=True)
    ]
    parts: list[dict[str, float]] = [{} for _ in rows]
    if explain:
        known_parts = iter(_explained(served, made, known, wishes))
        parts = [next(known_parts) if row >= 0 else {} for row in rows]
        parts = reordering.explain(parts, order) if reordering else parts
    return ServedList(places, order.scores.tolist(), named, parts)


def _ranked(
    served: ServedRanker,
    history: Int[np.ndarray, " T"],
    found: Recommendation,
    depth: int,
    *,
    allowed: Int64[np.ndarray, " W"] | None,
    wishes: Sequence[Wish],
    reordering: Reordering | None,
) -> RankedLists:
    """Return the best items of the index by the ranker's scores."""
    ranker, index = served.ranker, served.item_index
    known, proposed = index.row_of[history], index.row_of[found.places]
    known, mask = known[known >= 0], index.served(None if allowed is None else unpack(allowed, len(index.row_of)))
    boosted = None if reordering is None else index.row_of[reordering.boosted]
    lists = ranker.lists.rank(
        HistoryItems(known, np.array([0, len(known)])),
        one_list(proposed[proposed >= 0]),
        depth,
        allowed=None if mask is None else mask[None],
        wishes=wishes,
        carriers=ranker.vocabulary.carriers if wishes else None,
        boosted=boosted[boosted >= 0] if boosted is not None and len(boosted) else None,
    )
    ((_, by_system),) = lists
    return by_system[SERVED]


def _with_later_items(
    item_index: ServedIndex, made: RankedLists, generated: Sequence[int]
) -> tuple[Int[np.ndarray, " C"], Float[np.ndarray, " C"], Int[np.ndarray, " C"]]:
    """Return the places, scores and rows of a ranked list, with the policy's items that the index does not know.

    Such an item keeps its place in the policy's list, has the score of the item that stood there, and the row -1.
    """
    places, scores = item_index.place_of[made.candidates.item].tolist(), made.score.tolist()
    rows = list(range(len(places)))
    for at, place in enumerate(generated):
        if item_index.row_of[place] < 0:
            scores.insert(at, scores[min(at, len(scores) - 1)] if scores else 0.0)
            places.insert(at, place)
            rows.insert(at, -1)
    return np.array(places, np.int64), np.array(scores, np.float64), np.array(rows, np.int64)


def _explained(
    served: ServedRanker, made: RankedLists, rows: Int[np.ndarray, " k"], wishes: Sequence[Wish]
) -> list[dict[str, float]]:
    """Return what each group of features, and the wishes, add to the scores of some rows, without groups that add nothing."""
    ranker = served.ranker
    parts = _contributions(ranker, made.features[rows])
    if not wishes:
        return parts
    groups = ranker.lists.view.families[SERVED.family].groups[0]
    added = steer_scores(wishes, groups, made.candidates.item[rows]).round(4).tolist()
    return [part | {STEER: score} for part, score in zip(parts, added, strict=True)]


def _contributions(ranker: RunRanker, features: np.ndarray) -> list[dict[str, float]]:
    """Return what each group of features adds to each score, without groups that add nothing to any score."""
    groups = [group_of(name) for name in ranker.features]
    rows = ranker.lists.rankers[SERVED].contributions(features)
    names = list(dict.fromkeys(groups))
    member = np.array([[group == name for name in names] for group in groups], float)
    added = (rows @ member).round(4)
    kept = np.flatnonzero(added.any(axis=0))
    return [dict(zip([names[at] for at in kept], row, strict=True)) for row in added[:, kept].tolist()]
