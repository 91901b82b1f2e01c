"""The ranker of a served run: it orders the candidates of all sources, of which the policy's beam is one.

The ranker and the other sources do not know an item added after the run; it keeps its place in the policy's list.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int64

from digr import artifacts
from digr.artifacts import Store
from digr.config.models import EncoderConfig
from digr.interests.canonical import group_names
from digr.policy.decoding.search import Recommendation
from digr.ranking.features import group_of
from digr.ranking.lists import ListRanker, load_list_ranker, source_names
from digr.ranking.neighbours import HistoryItems, Neighbours
from digr.ranking.sources import STEER
from digr.ranking.steering import Vocabulary, Wish, find_interest, steer_scores, wish_of_interest, wish_of_words
from digr.ranking.systems import SERVED, feature_names, sources_of
from digr.ranking.views import load_array, load_arrays
from digr.serving.facts import unpack
from serve.encoders import get_encoder
from serve.schemas import Steer


class RunRanker(NamedTuple):
    """A run's `ranking_index` and `ranker`; loaded once and kept when items are added."""

    lists: ListRanker
    features: list[str]
    vocabulary: Vocabulary
    """Interests that a wish may name."""
    encoder: EncoderConfig
    """Encoder of the canonical interests."""


class ServedRanker(NamedTuple):
    """A run's ranker, with the mapping between its items and the served ones (in the order of `trie.item_ids`)."""

    ranker: RunRanker
    index_of: Int[np.ndarray, " N"]
    """Row of each served item in the index; -1 for an item added later."""
    place_of: Int[np.ndarray, " I"]
    """Place of each item of the index among the served items; -1 if it is not served."""


class ServedList(NamedTuple):
    """A list in the ranker's order."""

    places: Int[np.ndarray, " M"]
    scores: list[float]
    sources: list[list[str]]
    """Which sources proposed each item."""
    contributions: list[dict[str, float]]
    """What each group of features adds to an item's score, apart from a constant; empty if the request did not ask."""


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
) -> ServedList:
    """Rank the candidates that all sources propose for a history.

    Args:
        history: places of its items, oldest first.
        found: the policy's list, as long as its beam.
        k: items listed, as many as the policy found at least.
        allowed: items that may be listed, as bits of words; None for all.
        explain: whether to compute contributions.
        wishes: the request's, already translated.
    """
    ranker = served.ranker
    known, generated = served.index_of[history], served.index_of[found.places]
    known, proposed = known[known >= 0], generated[generated >= 0]
    mask = None
    if allowed is not None:
        mask = (served.place_of >= 0) & unpack(allowed, len(served.index_of))[served.place_of]
    if mask is None and (served.place_of < 0).any():
        mask = served.place_of >= 0
    lists = ranker.lists.rank(
        HistoryItems(known, np.array([0, len(known)])),
        Neighbours(np.array([0, len(proposed)]), proposed.astype(np.int32), np.ones(len(proposed), np.float32)),
        k,
        allowed=None if mask is None else mask[None],
        wishes=wishes,
        carriers=ranker.vocabulary.carriers if wishes else None,
    )
    ((_, by_system),) = lists
    made = by_system[SERVED]
    sources = source_names(made.candidates, [*sources_of(SERVED), STEER]).to_pylist()
    parts = _contributions(ranker, made.features) if explain else [{}] * len(sources)
    if wishes and explain:
        groups = ranker.lists.view.families[SERVED.family].groups[0]
        added = steer_scores(wishes, groups, made.candidates.item).round(4).tolist()
        parts = [part | {STEER: score} for part, score in zip(parts, added, strict=True)]
    listed = list(zip(served.place_of[made.candidates.item].tolist(), made.score.tolist(), sources, parts, strict=True))
    for at, (place, index) in enumerate(zip(found.places[:k].tolist(), generated[:k].tolist(), strict=True)):
        if index < 0:
            score = listed[min(at, len(listed) - 1)][1] if listed else 0.0
            listed.insert(at, (place, score, ["generation"], {}))
    columns = [list(column) for column in zip(*listed[:k], strict=True)] or [[], [], [], []]
    return ServedList(np.array(columns[0], np.int64), columns[1], columns[2], columns[3])


def _contributions(ranker: RunRanker, features: np.ndarray) -> list[dict[str, float]]:
    """Return what each group of features adds to each score, without groups that add nothing to any score."""
    groups = [group_of(name) for name in ranker.features]
    rows = ranker.lists.rankers[SERVED].contributions(features)
    names = list(dict.fromkeys(groups))
    member = np.array([[group == name for name in names] for group in groups], float)
    added = (rows @ member).round(4)
    kept = np.flatnonzero(added.any(axis=0))
    return [dict(zip([names[at] for at in kept], row, strict=True)) for row in added[:, kept].tolist()]
