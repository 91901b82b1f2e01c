"""Training, validation and test examples from interactions: k-core, splits, histories.

Everything is integer arithmetic on sorted arrays; strings are looked up once, block by block, at the end.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from digr.tables import SPLITS, TABLES

BLOCK_VALUES = 10_000_000
"""History items looked up at once, so that a string array stays far below Arrow's 2 GiB."""


class Histories(NamedTuple):
    """Rows of the `histories` table, what was left out (reason -> count) and what a reader should know of them."""

    table: pa.Table
    rejected: dict[str, int]
    facts: dict[str, Any]


class Sequences(NamedTuple):
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
    timed: np.ndarray


class _Rows(NamedTuple):
    """Examples in the order of their targets: index of the target, length of the history, split, number in the split."""

    target: Int[np.ndarray, " R"]
    length: Int[np.ndarray, " R"]
    split: Int[np.ndarray, " R"]
    number: Int[np.ndarray, " R"]


def k_core(interactions: pa.Table, core: int) -> pa.Table:
    """Keep the users and items with at least `core` interactions, repeatedly until none has fewer; 0 keeps all.

    The raw order of the rows stays.

    Raises:
        ValueError: nothing is left.
    """
    if core <= 1 or not len(interactions):
        return interactions
    sides = [codes_of(interactions[column])[0] for column in ("user_id", "item_id")]
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


def build_histories(interactions: pa.Table, split: Literal["leave_one_out", "temporal"], max_history: int) -> Histories:
    """Split interactions into examples.

    `leave_one_out`: a user's last item is the test target, the one before the valid target, and one train row holds all
    before (its last as target). Users with fewer than three interactions are left out; with just three a user has no
    train row, for a history may not be empty. `temporal`: every item but a user's first is a target; the first 80 % of
    the targets by time are train, the next 10 % valid, the rest test, and equal timestamps keep the raw row order. So a
    user can be in all three, and the histories of valid and test rows may hold train targets, never the reverse.

    Args:
        interactions: rows of the table `interactions`, in raw order.
        split: how targets are held out.
        max_history: items kept of a history, the newest; at least 1.

    Raises:
        ValueError: times contradict positions, a temporal split lacks times, or a split would be empty.
    """
    sequences = sequences_of(interactions)
    _check_time(sequences)
    if split == "leave_one_out":
        rows, rejected = _leave_one_out(sequences)
    else:
        rows, rejected = _temporal(sequences), {}
    lengths = np.minimum(rows.length, max_history)
    return _finish(sequences, rows._replace(length=lengths), rejected)


def from_official_splits(interactions: pa.Table, splits: Mapping[str, pa.Table], max_history: int) -> Histories:
    """Take the published rows of a data set as they are, histories cut to the newest `max_history` items.

    Every row is found in the interactions: the rows of a user, train then valid then test, must be the user's last
    interactions in order, and each history the items just before its target. That is what makes the splits disjoint and
    ordered in time; it also gives the targets their times.

    Args:
        interactions: rows of the table `interactions`.
        splits: train, valid and test, each with user_id, history (oldest first) and target, in raw row order.
        max_history: items kept of a history, the newest; at least 1.

    Raises:
        ValueError: a row is not found, which means that the splits overlap, are out of order or belong to other data.
    """
    sequences = sequences_of(interactions)
    _check_time(sequences)
    sizes = [len(splits[name]) for name in SPLITS]
    together = pa.concat_tables([splits[name].select(["user_id", "history", "target"]) for name in SPLITS])
    split = np.repeat(np.arange(len(SPLITS)), sizes)
    number = np.concatenate([np.arange(size) for size in sizes])
    user = _lookup(together["user_id"], sequences.users)
    order = np.argsort(user, kind="stable")
    user, split, number = user[order], split[order], number[order]
    together = together.take(pa.array(order))
    # the last row of a user belongs to the user's last interaction, the one before to the one before, and so on
    counts = np.bincount(user[user >= 0], minlength=len(sequences.users))
    ends = np.concatenate([np.zeros(int((user < 0).sum()), np.int64), (sequences.start[1:] - np.cumsum(counts))[user[user >= 0]]])
    target = ends + np.arange(len(user)) - int((user < 0).sum())
    length = pc.list_value_length(together["history"]).to_numpy().astype(np.int64)
    _check_official(sequences, together, _Rows(target, length, split, number), user)
    return _finish(sequences, _Rows(target, np.minimum(length, max_history), split, number), {})


def sequences_of(interactions: pa.Table) -> Sequences:
    """Sort interactions by (user_id, position)."""
    user, users = codes_of(interactions["user_id"])
    item, items = codes_of(interactions["item_id"])
    row = np.lexsort((interactions["position"].to_numpy(), user))
    timestamp = interactions["timestamp"].take(pa.array(row))
    milliseconds = pc.fill_null(timestamp.cast(pa.int64()), 0).to_numpy()
    timed = pc.is_valid(timestamp).to_numpy(zero_copy_only=False)
    start = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(users)))])
    return Sequences(users, items, row, user[row], item[row], start, timestamp, milliseconds, timed)


def codes_of(column: pa.ChunkedArray) -> tuple[Int[np.ndarray, " N"], pa.Array]:
    """Return the index of each value in the sorted distinct values, and these values."""
    distinct = pc.unique(column)
    distinct = distinct.take(pc.sort_indices(distinct))
    return _lookup(column, distinct), distinct


def _lookup(column: pa.ChunkedArray, values: pa.Array) -> Int[np.ndarray, " N"]:
    """Return the index of each string in `values`, -1 where it is not among them."""
    if not len(column):
        return np.zeros(0, np.int64)
    return pc.fill_null(pc.index_in(column, value_set=values), -1).to_numpy().astype(np.int64)


def _check_time(sequences: Sequences) -> None:
    same = (sequences.user[1:] == sequences.user[:-1]) & sequences.timed[1:] & sequences.timed[:-1]
    wrong = np.flatnonzero(same & (np.diff(sequences.milliseconds) < 0))
    if len(wrong):
        user = sequences.users[sequences.user[wrong[0]]].as_py()
        raise ValueError(
            f"interactions: {len(wrong)} timestamps are earlier than that of the position before (first: user {user!r}); "
            f"`position` must be the order in time"
        )


def _leave_one_out(sequences: Sequences) -> tuple[_Rows, dict[str, int]]:
    counts = np.diff(sequences.start)
    users = np.flatnonzero(counts >= 3)
    # a user's train target is third from last; with three interactions it would have no history
    offset = np.tile(np.array([3, 2, 1]), (len(users), 1))
    target = sequences.start[users + 1][:, None] - offset
    length = target - sequences.start[users][:, None]
    split = np.tile(np.arange(3), (len(users), 1))
    usable = length.ravel() > 0
    target, length, split = target.ravel()[usable], length.ravel()[usable], split.ravel()[usable]
    number = np.zeros(len(target), np.int64)
    for index in range(3):
        number[split == index] = np.arange(int((split == index).sum()))
    short = int((counts < 3).sum())
    return _Rows(target, length, split, number), {"user with fewer than 3 interactions": short} if short else {}


def _temporal(sequences: Sequences) -> _Rows:
    if not sequences.timed.all():
        missing = int((~sequences.timed).sum())
        raise ValueError(
            f'data.split = "temporal": {missing} of {len(sequences.timed)} interactions have no timestamp; use "leave_one_out"'
        )
    length = np.arange(len(sequences.user)) - sequences.start[sequences.user]
    target = np.flatnonzero(length > 0)
    # the raw row settles equal times; its running maximum keeps a user's own order where the file is not in that order
    span = len(sequences.row)
    raw = np.maximum.accumulate(sequences.row + sequences.user * span) - sequences.user * span
    ranked = np.lexsort((target, raw[target], sequences.milliseconds[target]))
    cuts = np.array([0, len(target) * 8 // 10, len(target) * 9 // 10])
    rank = np.empty(len(target), np.int64)
    rank[ranked] = np.arange(len(target))
    split = np.searchsorted(cuts, rank, side="right") - 1
    return _Rows(target, length[target], split, rank - cuts[split])


def _check_official(sequences: Sequences, together: pa.Table, rows: _Rows, user: Int[np.ndarray, " R"]) -> None:
    start = np.where(user >= 0, sequences.start[user], 0)
    inside = (user >= 0) & (rows.length > 0) & (rows.target - rows.length >= start)
    safe = np.where(inside, rows.target, 0)
    good = inside & (sequences.item[safe] == _lookup(together["target"], sequences.items))
    length = np.where(good, rows.length, 0)
    found = _lookup(pc.list_flatten(together["history"].filter(pa.array(good))), sequences.items)
    differs = np.flatnonzero(found != sequences.item[_ranges(safe - length, length)])
    owner = np.repeat(np.arange(len(good)), length)
    good[owner[differs]] = False
    if good.all():
        return
    first = int(np.flatnonzero(~good)[0])
    owner_id, target = together["user_id"][first].as_py(), together["target"][first].as_py()
    raise ValueError(
        f"splits/{SPLITS[rows.split[first]]}.parquet, row {int(rows.number[first])}: user {owner_id!r}, "
        f"target {target!r}: {int((~good).sum())} of {len(good)} split rows do not follow the "
        f"interactions; the rows of a user (train, valid, test, in this order) must be the user's last interactions, each "
        f"with a history of at least one item that ends just before its target"
    )


def _ranges(start: Int[np.ndarray, " R"], length: Int[np.ndarray, " R"]) -> Int[np.ndarray, " S"]:
    """Concatenate the ranges [start, start + length)."""
    offset = np.cumsum(length) - length
    return np.arange(int(length.sum())) - np.repeat(offset - start, length)


def _finish(sequences: Sequences, rows: _Rows, rejected: dict[str, int]) -> Histories:
    sizes = {name: int((rows.split == index).sum()) for index, name in enumerate(SPLITS)}
    for name, size in sizes.items():
        if not size:
            raise ValueError(
                f"histories: split {name} is empty (rows: {sizes}); the data has too few interactions for this split"
            )
    step = max(1, BLOCK_VALUES // max(1, int(rows.length.max())))
    blocks = [_block(sequences, _Rows(*(part[at : at + step] for part in rows))) for at in range(0, len(rows.target), step)]
    same_user = sequences.user[1:] == sequences.user[:-1]
    equal = same_user & sequences.timed[1:] & sequences.timed[:-1] & (np.diff(sequences.milliseconds) == 0)
    facts = {
        "split_rows": sizes,
        "num_users": len(np.unique(sequences.user[rows.target])),
        "num_targets": len(np.unique(sequences.item[rows.target])),
        "equal_timestamp_rate": round(float(equal.sum() / max(1, same_user.sum())), 6),
        "equal_timestamps": "keep the raw order",
    }
    return Histories(pa.concat_tables(blocks), rejected, facts)


def _block(sequences: Sequences, rows: _Rows) -> pa.Table:
    flat = sequences.items.take(pa.array(sequences.item[_ranges(rows.target - rows.length, rows.length)]))
    offsets = np.concatenate([[0], np.cumsum(rows.length)]).astype(np.int32)
    split = pa.array(SPLITS).take(pa.array(rows.split))
    number = pc.utf8_lpad(pa.array(rows.number).cast(pa.string()), width=9, padding="0")
    columns = {
        "example_id": pc.binary_join_element_wise(split, number, "-"),
        "user_id": sequences.users.take(pa.array(sequences.user[rows.target])),
        "split": split,
        "history": pa.ListArray.from_arrays(pa.array(offsets), flat),
        "target": sequences.items.take(pa.array(sequences.item[rows.target])),
        "target_timestamp": sequences.timestamp.take(pa.array(rows.target)).combine_chunks(),
    }
    return pa.table(columns, schema=TABLES["histories"].schema)
