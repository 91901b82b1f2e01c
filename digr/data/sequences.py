"""Interactions as sorted integer arrays: a user's items in order, k-core, and where the times contradict the order."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int


class UserInteractions(NamedTuple):
    """Interactions sorted by (user_id, position); N of them, of C users.

    `row` is the raw row of each, `user` its index into `users`, `item` into `items`, `start` a user's first index, with
    a last entry N.
    """

    users: pa.Array
    items: pa.Array
    row: Int[np.ndarray, " N"]
    user: Int[np.ndarray, " N"]
    item: Int[np.ndarray, " N"]
    start: Int[np.ndarray, " C1"]
    timestamp: pa.ChunkedArray
    milliseconds: Int[np.ndarray, " N"]
    timed: Bool[np.ndarray, " N"]


def k_core(interactions: pa.Table, core: int) -> pa.Table:
    """Keep the users and items with at least `core` interactions, repeatedly until none has fewer; 0 keeps all.

    The raw order of the rows stays.

    Raises:
        ValueError: nothing is left.
    """
    if core <= 1 or not len(interactions):
        return interactions
    sides = [number_values(interactions[column])[0] for column in ("user_id", "item_id")]
    kept = np.arange(len(interactions))
    while True:
        before = len(kept)
        for codes in sides:
            counts = np.bincount(codes[kept], minlength=1)
            kept = kept[counts[codes[kept]] >= core]
        if not len(kept):
            raise ValueError(
                f"data.core: no interaction is left of {len(interactions)} with core = {core}; choose a smaller core"
            )
        if len(kept) == before:
            return interactions if before == len(interactions) else interactions.take(pa.array(kept))


def sort_interactions(interactions: pa.Table) -> UserInteractions:
    """Sort interactions by (user_id, position)."""
    user, users = number_values(interactions["user_id"])
    item, items = number_values(interactions["item_id"])
    row = np.lexsort((interactions["position"].to_numpy(), user))
    timestamp = interactions["timestamp"].take(pa.array(row))
    milliseconds = pc.fill_null(timestamp.cast(pa.int64()), 0).to_numpy()
    timed = pc.is_valid(timestamp).to_numpy(zero_copy_only=False)
    start = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(users)))])
    return UserInteractions(users, items, row, user[row], item[row], start, timestamp, milliseconds, timed)


def number_values(column: pa.ChunkedArray) -> tuple[Int[np.ndarray, " N"], pa.Array]:
    """Return the index of each value in the sorted distinct values, and these values."""
    distinct = pc.unique(column)
    distinct = distinct.take(pc.sort_indices(distinct))
    return look_up(column, distinct), distinct


def look_up(column: pa.ChunkedArray, values: pa.Array) -> Int[np.ndarray, " N"]:
    """Return the index of each string in `values`, -1 where it is not among them."""
    if not len(column):
        return np.zeros(0, np.int64)
    return pc.fill_null(pc.index_in(column, value_set=values), -1).to_numpy().astype(np.int64)


def check_time(sequences: UserInteractions) -> None:
    """Refuse users whose times fall along their positions.

    Raises:
        ValueError: one does; the first is named.
    """
    same = (sequences.user[1:] == sequences.user[:-1]) & sequences.timed[1:] & sequences.timed[:-1]
    wrong = np.flatnonzero(same & (np.diff(sequences.milliseconds) < 0))
    if len(wrong):
        user = sequences.users[sequences.user[wrong[0]]].as_py()
        raise ValueError(
            f"interactions: {len(wrong)} timestamps are earlier than that of the position before (first: user {user!r}); "
            f"`position` must be the order in time"
        )


def ranges(start: Int[np.ndarray, " R"], length: Int[np.ndarray, " R"]) -> Int[np.ndarray, " S"]:
    """Concatenate the ranges [start, start + length)."""
    offset = np.cumsum(length) - length
    return np.arange(int(length.sum())) - np.repeat(offset - start, length)
