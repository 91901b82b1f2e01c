"""The ranking index of a served run: neighbours and vectors of its items, which a version has with or without a ranker.

It does not know an item that was added after the run.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from digr import artifacts
from digr.artifacts import Store
from digr.ranking.systems import SERVED
from digr.ranking.views import View, load_view
from serve.items.lineage import OF_THE_RANKER


class ServedIndex(NamedTuple):
    """The index with the mapping between its items and the served ones (in the order of `trie.item_ids`)."""

    view: View
    row_of: Int[np.ndarray, " N"]
    """Row of each served item in the index; -1 for an item added later."""
    place_of: Int[np.ndarray, " I"]
    """Place of each item of the index among the served items; -1 if it is not served."""

    def vectors(self, places: Int[np.ndarray, " M"]) -> Float[np.ndarray, "M D"]:
        """Return the unit vectors of the interests of served items; zeros for those without interests or added later."""
        rows, vectors = self.row_of[places], self.view.families[SERVED.family].vectors
        return np.where((rows >= 0)[:, None], vectors[np.maximum(rows, 0)], np.zeros((), vectors.dtype))

    def served(self, mask: Bool[np.ndarray, " N"] | None) -> Bool[np.ndarray, " I"] | None:
        """Return which items of the index are marked among the served ones; None if all are served and none is left out."""
        if mask is not None:
            return (self.place_of >= 0) & mask[self.place_of]
        return self.place_of >= 0 if (self.place_of < 0).any() else None


def load_run_index(store: Store) -> View | None:
    """Load the ranking index of a run; return None if it has none.

    Raises:
        ValueError: it was made from another build of the items or their interests.
    """
    if artifacts.read_manifest(store, "ranking_index") is None:
        return None
    artifacts.check_lineage(store, "ranking_index", OF_THE_RANKER["ranking_index"])
    with artifacts.local_files(store, "ranking_index") as folder:
        return load_view(folder, "all", (SERVED.family,), grains=0)
