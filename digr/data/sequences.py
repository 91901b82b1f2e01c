"""Interactions of some users as sorted integer arrays, with a check that times agree with positions."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int


class UserInteractions(NamedTuple):
    """Interactions sorted by user and position; N of them, of C users.

    `user` is the index of each into `users`, `item` into `items`, `start` a user's first index, with a last entry N.
    """

    users: pa.Array
    items: pa.Array
    user: Int[np.ndarray, " N"]
    item: Int[np.ndarray, " N"]
    start: Int[np.ndarray, " C1"]
    timestamp: pa.Array
    milliseconds: Int[np.ndarray, " N"]
    """Milliseconds since 1970; 0 if there is no time."""
    timed: Bool[np.ndarray, " N"]
    rank: Int[np.ndarray, " N"]
    """Rank among all targets by time; -1 if ranks are not needed or the interaction is not a target."""


def user_interactions(rows: pa.Table, items: pa.Array) -> UserInteractions:
    """Turn rows that are sorted by user and position into arrays.

    Args:
        rows: user_number, user_id, item_number (place in `items`), position, time (milliseconds or null) and rank (or null).
        items: ids of all items.

    Raises:
        ValueError: a user has a position twice, or a time earlier than that of the position before; names the first user.
    """
    number, position = (rows[name].to_numpy().astype(np.int64) for name in ("user_number", "position"))
    begins = np.flatnonzero(np.append(True, number[1:] != number[:-1])[: len(number)])
    start = np.append(begins, len(number))
    user = np.repeat(np.arange(len(begins)), np.diff(start))
    time = rows["time"].combine_chunks()
    found = UserInteractions(
        users=rows["user_id"].combine_chunks().take(pa.array(begins)),
        items=items,
        user=user,
        item=rows["item_number"].to_numpy().astype(np.int64),
        start=start,
        timestamp=time.cast(pa.timestamp("ms", tz="UTC")),
        milliseconds=pc.fill_null(time, 0).to_numpy(),
        timed=pc.is_valid(time).to_numpy(zero_copy_only=False),
        rank=pc.fill_null(rows["rank"].combine_chunks(), -1).to_numpy(),
    )
    _check_positions(found, position)
    _check_times(found)
    return found


def _check_positions(sequences: UserInteractions, position: Int[np.ndarray, " N"]) -> None:
    doubled = np.flatnonzero((np.diff(sequences.user) == 0) & (np.diff(position) == 0))
    if len(doubled):
        user = sequences.users[sequences.user[doubled[0]]].as_py()
        raise ValueError(
            f"interactions: table interactions: duplicate key user_id={user!r}, position={position[doubled[0]]} "
            f"({len(doubled)} keys occur more than once)"
        )


def _check_times(sequences: UserInteractions) -> None:
    """Check that each user's times never fall from position to position, also across interactions without a time."""
    if not sequences.timed.any():
        return
    least = int(sequences.milliseconds[sequences.timed].min())
    since = np.where(sequences.timed, sequences.milliseconds - least, 0)
    span = int(since.max()) + 1
    latest = np.maximum.accumulate(since + sequences.user * span) - sequences.user * span
    same = sequences.user[1:] == sequences.user[:-1]
    wrong = np.flatnonzero(same & sequences.timed[1:] & (since[1:] < latest[:-1]))
    if len(wrong):
        user = sequences.users[sequences.user[wrong[0]]].as_py()
        raise ValueError(
            f"interactions: {len(wrong)} timestamps are earlier than that of the position before (first: user {user!r}); "
            f"`position` must be the order in time"
        )


def look_up(column: pa.ChunkedArray | pa.Array, values: pa.Array) -> Int[np.ndarray, " N"]:
    """Return the index of each string in `values`, -1 where it is not among them."""
    if not len(column):
        return np.zeros(0, np.int64)
    return pc.fill_null(pc.index_in(column, value_set=values), -1).to_numpy(zero_copy_only=False).astype(np.int64)


def ranges(start: Int[np.ndarray, " R"], length: Int[np.ndarray, " R"]) -> Int[np.ndarray, " S"]:
    """Concatenate the ranges [start, start + length)."""
    offset = np.cumsum(length) - length
    return np.arange(int(length.sum())) - np.repeat(offset - start, length)
