"""The ranker of a served run: the policy's beam is one source of several, and their union is put in order.

An item that came after the run is unknown to the sources and the ranker; it keeps the place that the policy gives it.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from digr import artifacts
from digr.artifacts import Store
from digr.data.ids import build_id_index
from digr.policy.decoding.search import Recommendation
from digr.ranking.features import group_of
from digr.ranking.lists import ListRanker, load_list_ranker, source_names
from digr.ranking.neighbours import HistoryItems, Neighbours
from digr.ranking.systems import SERVED, feature_names, sources_of


class RunRanker(NamedTuple):
    """What a run's `ranking_index` and `ranker` hold, loaded once for all that is added to the run."""

    lists: ListRanker
    item_ids: pa.Array
    """The items that the index knows, in its order."""
    features: list[str]


class ServedRanker(NamedTuple):
    """A run's ranker, for items in the order of `trie.item_ids`."""

    ranker: RunRanker
    index_of: Int[np.ndarray, " N"]
    """Where the index has each item; -1 for one that came later."""
    place_of: Int[np.ndarray, " I"]
    """Where each item of the index stands; -1 for one that is not served."""


class RankedList(NamedTuple):
    """A list in the order of the ranker."""

    places: Int[np.ndarray, " M"]
    scores: list[float]
    sources: list[list[str]]
    """Which sources proposed each item."""
    contributions: list[dict[str, float]]
    """What each group of features adds to an item's score, but for a constant; empty where nobody asked."""


def load_run_ranker(store: Store) -> RunRanker | None:
    """Load the ranker of a run; None where it has none."""
    manifest = artifacts.read_manifest(store, "ranker")
    if manifest is None:
        return None
    artifacts.check_lineage(store, "ranker", ["ranking_index", "items"])
    grains = len(manifest.config["ranking"]["interest_cosines"])
    with artifacts.local_files(store, "ranking_index") as index, artifacts.local_files(store, "ranker") as rankers:
        lists = load_list_ranker(index, rankers, [SERVED], "test", grains)
    item_ids = artifacts.read_table(store, "items", ["item_id"])["item_id"].combine_chunks()
    return RunRanker(lists, item_ids, feature_names(SERVED, grains))


def serve_ranker(ranker: RunRanker | None, item_ids: pa.Array) -> ServedRanker | None:
    """Find the items of a ranker among those that are served."""
    if ranker is None:
        return None
    return ServedRanker(ranker, build_id_index(ranker.item_ids).find(item_ids), build_id_index(item_ids).find(ranker.item_ids))


def rank(
    served: ServedRanker,
    history: Int[np.ndarray, " T"],
    found: Recommendation,
    k: int,
    allowed: Bool[np.ndarray, " N"] | None,
    *,
    explain: bool,
) -> RankedList:
    """Order what all sources propose after a history.

    Args:
        history: places, oldest first.
        found: the policy's list, as long as its beam.
        k: items listed, as many as the policy found at least.
        allowed: items that may be listed; None for all.
        explain: whether contributions are wanted.
    """
    ranker = served.ranker
    known, generated = served.index_of[history], served.index_of[found.places]
    known, proposed = known[known >= 0], generated[generated >= 0]
    mask = None if allowed is None else (served.place_of >= 0) & allowed[served.place_of]
    if mask is None and (served.place_of < 0).any():
        mask = served.place_of >= 0
    lists = ranker.lists.rank(
        HistoryItems(known, np.array([0, len(known)])),
        Neighbours(np.array([0, len(proposed)]), proposed.astype(np.int32), np.ones(len(proposed), np.float32)),
        k,
        None if mask is None else mask[None],
    )
    ((_, by_system),) = lists
    made = by_system[SERVED]
    sources = source_names(made.candidates, sources_of(SERVED)).to_pylist()
    parts = _contributions(ranker, made.features) if explain else [{}] * len(sources)
    listed = list(zip(served.place_of[made.candidates.item].tolist(), made.score.tolist(), sources, parts, strict=True))
    for at, (place, index) in enumerate(zip(found.places[:k].tolist(), generated[:k].tolist(), strict=True)):
        if index < 0:
            score = listed[min(at, len(listed) - 1)][1] if listed else 0.0
            listed.insert(at, (place, score, ["generation"], {}))
    columns = [list(column) for column in zip(*listed[:k], strict=True)] or [[], [], [], []]
    return RankedList(np.array(columns[0], np.int64), columns[1], columns[2], columns[3])


def _contributions(ranker: RunRanker, features: np.ndarray) -> list[dict[str, float]]:
    if not len(features):
        return []
    groups = [group_of(name) for name in ranker.features]
    rows = ranker.lists.rankers[SERVED].contributions(features)
    names = list(dict.fromkeys(groups))
    member = np.array([[group == name for name in names] for group in groups], float)
    return [dict(zip(names, row, strict=True)) for row in (rows @ member).round(4).tolist()]
