"""Histories of known users and the popularity of items, out of a run's tables."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from digr.data.ids import IdIndex, build_id_index
from digr.data.sequences import with_first_rows


class UserHistories(NamedTuple):
    """The newest items of every user."""

    users: IdIndex
    places: Int[np.ndarray, " F"]
    """Items of all users, user by user, oldest first."""
    offsets: Int[np.ndarray, " U1"]
    """History of user u is `places[offsets[u]:offsets[u + 1]]`."""

    def find(self, user_id: str) -> list[int] | None:
        """Return the places of a user's items, oldest first; None for an unknown user."""
        user = int(self.users.find([user_id])[0])
        return None if user < 0 else self.places[self.offsets[user] : self.offsets[user + 1]].tolist()


def index_histories(interactions: pa.Table, items: IdIndex, max_history: int) -> UserHistories:
    """Keep the newest `max_history` interactions of each user.

    Args:
        interactions: columns user_id, position and item_id; interactions with items that `items` does not know are left out.
        items: gives the places.
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


def count_interactions(batches: Iterable[pa.RecordBatch], items: IdIndex) -> Int[np.ndarray, " N"]:
    """Count how often each item occurs in the training rows of `histories`, each interaction once.

    As `evaluation.baselines.count_training` counts: the rows of a user follow each other in time, so the first one brings its
    history and every one its target.

    Args:
        batches: columns user_id, history and target.
    """
    counts = np.zeros(len(items), np.int64)
    for batch, first in with_first_rows(batches):
        begun = pc.filter(batch["history"], pa.array(first)).flatten()
        places = np.concatenate([items.find(batch["target"]), items.find(begun)])
        counts += np.bincount(places[places >= 0], minlength=len(items))
    return counts
