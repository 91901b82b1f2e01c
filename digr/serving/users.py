"""Histories of known users, from a run's interactions."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from digr import artifacts
from digr.artifacts import Store
from digr.data.ids import IdIndex, build_id_index


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


def index_histories(interactions: pa.Table, items: IdIndex, max_history: int) -> UserHistories:
    """Keep the newest `max_history` interactions of each user.

    Args:
        interactions: columns user_id, position and item_id; interactions with unknown items are left out.
        items: defines the places of items.
    """
    places = items.find(interactions["item_id"])
    users = interactions["user_id"].combine_chunks().dictionary_encode()
    user = users.indices.to_numpy(zero_copy_only=False)
    order = np.lexsort((interactions["position"].to_numpy(), user))
    order = order[places[order] >= 0]
    user = user[order]
    ends = np.searchsorted(user, np.arange(len(users.dictionary)), side="right")
    order = order[ends[user] - np.arange(len(order)) <= max_history]
    user = np.asarray(users.indices.take(pa.array(order)))
    offsets = np.searchsorted(user, np.arange(len(users.dictionary) + 1))
    return UserHistories(build_id_index(users.dictionary), places[order], offsets)


def newest_interaction(store: Store) -> int | None:
    """Return the time of a run's newest interaction, milliseconds since 1970; None if its times are not known."""
    dataset = artifacts.dataset_of(store, "interactions")
    newest = None
    if "timestamp" in dataset.schema.names:
        for batch in dataset.to_batches(columns=["timestamp"]):
            found = pc.max(batch["timestamp"].cast(pa.int64())).as_py()
            newest = found if newest is None or (found is not None and found > newest) else newest
    return newest
