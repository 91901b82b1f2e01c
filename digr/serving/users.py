"""Histories of known users, from a run's interactions, mapped from files."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from digr import artifacts
from digr.artifacts import Store
from digr.data.ids import IdIndex
from digr.serving.mapped import map_array, map_id_index, save_array, save_id_index

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class UserHistories(NamedTuple):
    """The newest items of every user."""

    users: IdIndex
    places: Int[np.ndarray, " F"]
    """Items of all users, grouped by user, oldest first."""
    offsets: Int[np.ndarray, " U1"]
    """History of user u is `places[offsets[u]:offsets[u + 1]]`."""

    def find(self, user_id: str) -> list[int] | None:
        """Return the places of a user's items, oldest first; None for an unknown user."""
        user = int(self.users.find([user_id])[0])
        return None if user < 0 else self.places[self.offsets[user] : self.offsets[user + 1]].tolist()


class _Part(NamedTuple):
    """Histories of some users."""

    users: pa.Array
    places: Int[np.ndarray, " F"]
    counts: Int[np.ndarray, " U"]


def save_histories(folder: Path, parts: Iterable[pa.Table], items: IdIndex, max_history: int) -> pa.Array:
    """Write the newest `max_history` interactions of each user for `map_histories`; return the users' ids.

    Memory holds one part of the interactions and what is written, never all interactions.

    Args:
        parts: columns user_id, position and item_id, all rows of a user in one part; interactions with unknown items are left
            out.
        items: defines the places of items.
    """
    found = [_newest(part, items, max_history) for part in parts]
    users = pa.concat_arrays([pa.array([], pa.string()), *(part.users for part in found)])
    save_id_index(folder, "users", users)
    save_array(folder, "history-places", np.concatenate([np.zeros(0, np.int32), *(part.places for part in found)]))
    counts = np.concatenate([np.zeros(1, np.int64), *(part.counts for part in found)])
    save_array(folder, "history-offsets", counts.cumsum())
    return users


def map_histories(folder: Path) -> UserHistories:
    """Map the histories of `save_histories`."""
    return UserHistories(map_id_index(folder, "users"), map_array(folder, "history-places"), map_array(folder, "history-offsets"))


def _newest(interactions: pa.Table, items: IdIndex, max_history: int) -> _Part:
    places = items.find(interactions["item_id"])
    users = interactions["user_id"].combine_chunks().dictionary_encode()
    user = users.indices.to_numpy(zero_copy_only=False)
    order = np.lexsort((interactions["position"].to_numpy(), user))
    order = order[places[order] >= 0]
    user = user[order]
    ends = np.searchsorted(user, np.arange(len(users.dictionary)), side="right")
    kept = ends[user] - np.arange(len(order)) <= max_history
    counts = np.bincount(user[kept], minlength=len(users.dictionary))
    return _Part(users.dictionary, places[order[kept]].astype(np.int32), counts)


def newest_interaction(store: Store) -> int | None:
    """Return the time of a run's newest interaction, milliseconds since 1970; None if its times are not known."""
    dataset = artifacts.dataset_of(store, "interactions")
    newest: list[int] = []
    if "timestamp" in dataset.schema.names:
        for fragment in dataset.get_fragments():
            bounds = [group.statistics and group.statistics.get("timestamp") for group in getattr(fragment, "row_groups", ())]
            if bounds and all(bounds):  # written by this program, so no row needs to be read
                newest += [(bound["max"] - _EPOCH) // timedelta(milliseconds=1) for bound in bounds]
                continue
            for batch in fragment.to_batches(columns=["timestamp"]):
                found = pc.max(batch["timestamp"].cast(pa.int64())).as_py()
                newest += [] if found is None else [found]
    return max(newest, default=None)
