"""Read the training interactions of users, each interaction and each step exactly once, for everything that counts them.

The train rows of `histories` overlap: under official and temporal splits each row repeats the row before it and adds one
item; under leave-one-out one row holds a user's whole training history. Counting whole rows would count old interactions
many times, and counting only the last step of each row would miss the others. The sequences made here avoid both.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int

from digr import artifacts
from digr.artifacts import Store

COLUMNS = ("user_id", "split", "history", "target")
"""The columns of `histories` that this module reads."""
CHUNK_ITEMS = 262_144
"""History items that are merged at once, so that memory depends neither on the data nor on max_history."""

Find = Callable[[pa.Array], Int[np.ndarray, " N"]]
"""Returns the place of each item id, -1 for an unknown one; for example `IdIndex.find`."""


class TrainingSequences(NamedTuple):
    """The N training interactions of C users, all of a user's together, oldest first."""

    user_ids: pa.Array
    item: Int[np.ndarray, " N"]
    """Place of each interaction's item; -1 for an unknown one."""
    start: Int[np.ndarray, " C1"]
    """User u has `item[start[u]:start[u + 1]]`; the last entry is N."""


class Steps(NamedTuple):
    """S steps, each from an interaction of a user to a later one; `user` is an index into `user_ids`, `gap` is at least 1."""

    user: Int[np.ndarray, " S"]
    before: Int[np.ndarray, " S"]
    after: Int[np.ndarray, " S"]
    gap: Int[np.ndarray, " S"]


def read_sequences(store: Store, find: Find) -> Iterator[TrainingSequences]:
    """Stream the training sequences of a run, see `training_sequences`."""
    return training_sequences(artifacts.iter_table(store, "histories", COLUMNS), find)


def training_sequences(batches: Iterable[pa.RecordBatch | pa.Table], find: Find) -> Iterator[TrainingSequences]:
    """Yield the training sequences of all users in chunks; all rows of a user are in one chunk, even if batches split them.

    Rows of other splits are skipped, so nothing held out is counted.

    Args:
        batches: `COLUMNS` of `histories` in the order in which `prepare_data` wrote them: the rows of a user are together
            and in time order. A single part of the table will do, because a user's rows are in one part.
        find: returns the places of item ids.

    Raises:
        ValueError: a row does not continue the user's row before it.
    """
    held: list[pa.Table] = []  # rows of the user that may continue in the next batch
    for rows in _train_rows(batches):
        begins = np.flatnonzero(user_begins(rows["user_id"]))
        if held and held[-1]["user_id"][-1] == rows["user_id"][0]:
            begins = begins[1:]
        if len(begins):
            yield from _sequences([*held, rows.slice(0, begins[-1])], find)
            held, rows = [], rows.slice(begins[-1])
        held.append(rows)
    yield from _sequences(held, find)


def steps_of(sequences: TrainingSequences, max_gap: int = 1) -> Steps:
    """Return the steps of each user from an interaction to each of the next `max_gap` ones, between known items.

    An unknown item has no steps, but counts in the gap between its neighbours. A step may lead to the same item.
    """
    user = np.repeat(np.arange(len(sequences.user_ids)), np.diff(sequences.start))
    parts = []
    for gap in range(1, max_gap + 1):
        before, after = sequences.item[:-gap], sequences.item[gap:]
        kept = np.flatnonzero((user[:-gap] == user[gap:]) & (before >= 0) & (after >= 0))
        parts.append(Steps(user[kept], before[kept], after[kept], np.full(len(kept), gap)))
    return Steps(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def count_items(chunks: Iterable[TrainingSequences], num_items: int) -> Int[np.ndarray, " I"]:
    """Count the training interactions with each of `num_items` items; those with unknown items are not counted."""
    counts = np.zeros(num_items, np.int64)
    for chunk in chunks:
        counts += np.bincount(chunk.item[chunk.item >= 0], minlength=num_items)
    return counts


def user_begins(user_ids: pa.ChunkedArray) -> Bool[np.ndarray, " B"]:
    """Mark the rows whose user is not that of the row before."""
    users = user_ids.combine_chunks()
    begins = np.ones(len(users), bool)
    begins[1:] = pc.not_equal(users[1:], users[:-1]).to_numpy(zero_copy_only=False)
    return begins


def merge_rows(rows: pa.Table) -> tuple[pa.Array, Int[np.ndarray, " N"]]:
    """Merge train rows: return the item ids, user after user, and the row that each comes from.

    A user's first row gives its history and target; each later row gives its target only, because its history repeats the
    same interactions.

    Args:
        rows: train rows with user_id, history and target, each user's in time order.

    Raises:
        ValueError: a row's history does not end with the target of the row before it, or goes further back than the user's
            first row.
    """
    history, target = rows["history"].combine_chunks(), rows["target"].combine_chunks()
    lengths = pc.list_value_length(history).to_numpy(zero_copy_only=False).astype(np.int64)
    begins = user_begins(rows["user_id"])
    _check_order(rows["user_id"], history.flatten(), lengths, target, begins)
    num_brought = np.where(begins, lengths, 0) + 1
    row = np.repeat(np.arange(len(rows)), num_brought)
    is_target = np.zeros(len(row), bool)
    is_target[np.cumsum(num_brought) - 1] = True
    old = history.filter(pa.array(begins)).flatten()
    source = np.empty(len(row), np.int64)
    source[~is_target], source[is_target] = np.arange(len(old)), len(old) + np.arange(len(rows))
    return pa.concat_arrays([old, target]).take(pa.array(source)), row


def _check_order(
    user_ids: pa.ChunkedArray,
    items: pa.Array,
    lengths: Int[np.ndarray, " B"],
    target: pa.Array,
    begins: Bool[np.ndarray, " B"],
) -> None:
    later = np.flatnonzero(~begins)
    first = np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0))[later]
    wrong = (lengths[later] < 1) | (lengths[later] - (later - first) > lengths[first])
    newest = items.take(pa.array(np.cumsum(lengths)[later[~wrong]] - 1))
    same = pc.equal(newest, target.take(pa.array(later[~wrong] - 1))).to_numpy(zero_copy_only=False)
    wrong[~wrong] = ~same
    if wrong.any():
        user = user_ids[int(later[wrong][0])].as_py()
        raise ValueError(
            f"histories: {int(wrong.sum())} train rows do not continue the row before (first: user {user!r}); the rows of a "
            f"user must be in time order, each with a history that ends with the target before it; run prepare_data "
            f"again with --force"
        )


def _train_rows(batches: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[pa.Table]:
    """Yield the train rows in tables of a bounded number of history items, none of them empty."""
    for batch in batches:
        rows = pa.table({name: batch[name] for name in COLUMNS})
        rows = rows.filter(pc.equal(rows["split"], "train"))
        if len(rows):
            step = max(1, CHUNK_ITEMS // max(1, pc.max(pc.list_value_length(rows["history"])).as_py()))
            yield from (rows.slice(at, step) for at in range(0, len(rows), step))


def _sequences(tables: list[pa.Table], find: Find) -> Iterator[TrainingSequences]:
    """Yield one chunk of the rows of whole users, nothing if there are no rows."""
    if not sum(map(len, tables)):
        return
    rows = pa.concat_tables(tables)
    item_ids, row = merge_rows(rows)
    begins = user_begins(rows["user_id"])
    start = np.append(np.searchsorted(row, np.flatnonzero(begins)), len(row))
    yield TrainingSequences(rows["user_id"].combine_chunks().filter(pa.array(begins)), find(item_ids), start)
