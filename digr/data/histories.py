"""Training, validation and test examples from interactions: splits and histories.

Everything is integer arithmetic on sorted arrays; strings are looked up once, block by block, at the end.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from digr.data.sequences import UserInteractions, check_time, look_up, ranges, sort_interactions
from digr.tables import SPLITS, TABLES

BLOCK_VALUES = 10_000_000
"""History items looked up at once, so that a string array stays far below Arrow's 2 GiB."""


class Histories(NamedTuple):
    """Rows of the `histories` table, what was left out (reason -> count) and what a reader should know of them."""

    table: pa.Table
    rejected: dict[str, int]
    facts: dict[str, Any]


class _Rows(NamedTuple):
    """Examples in the order of their targets.

    Index of the target, length of the history, split, number in the split, and how many targets before the row of that
    number (0 for the row itself).
    """

    target: Int[np.ndarray, " R"]
    length: Int[np.ndarray, " R"]
    split: Int[np.ndarray, " R"]
    number: Int[np.ndarray, " R"]
    back: Int[np.ndarray, " R"]


def build_histories(interactions: pa.Table, split: Literal["leave_one_out", "temporal"], max_history: int) -> Histories:
    """Split interactions into examples.

    `leave_one_out`: a user's last item is the test target, the one before the valid target, and one train row holds all
    before (its last as target), preceded by a row for each target that its history has no room for, so that every train
    interaction is in some train row. Users with fewer than three interactions are left out; with just three a user has
    no train row, for a history may not be empty. `temporal`: every item but a user's first is a target; the first 80 % of
    the targets by time are train, the next 10 % valid, the rest test, and equal timestamps keep the raw row order. So a
    user can be in all three, and the histories of valid and test rows may hold train targets, never the reverse.

    Args:
        interactions: rows of the table `interactions`, in raw order.
        split: how targets are held out.
        max_history: items kept of a history, the newest; at least 1.

    Raises:
        ValueError: times contradict positions, a temporal split lacks times, or a split would be empty.
    """
    sequences = sort_interactions(interactions)
    check_time(sequences)
    if split == "leave_one_out":
        rows, rejected = _leave_one_out(sequences)
    else:
        rows, rejected = _temporal(sequences), {}
    return _finish(sequences, rows, max_history, rejected)


def from_official_splits(interactions: pa.Table, splits: Mapping[str, pa.Table], max_history: int) -> Histories:
    """Take the published rows of a data set, histories cut to the newest `max_history` items.

    Where that takes items away from a user's first train row, rows for those targets precede it (their example ids end in
    .1, .2 and so on, counted back from it), so that every train interaction stays in some train row. A first train row
    whose history is shorter than what later ones hold of the same time is given all of it, see `digr.data.transitions`.

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
    sequences = sort_interactions(interactions)
    check_time(sequences)
    sizes = [len(splits[name]) for name in SPLITS]
    published = pa.concat_tables([splits[name].select(["user_id", "history", "target"]) for name in SPLITS])
    split = np.repeat(np.arange(len(SPLITS)), sizes)
    number = np.concatenate([np.arange(size) for size in sizes])
    user = look_up(published["user_id"], sequences.users)
    order = np.argsort(user, kind="stable")
    user, split, number = user[order], split[order], number[order]
    published = published.take(pa.array(order))
    # the last row of a user belongs to the user's last interaction, the one before to the one before, and so on
    counts = np.bincount(user[user >= 0], minlength=len(sequences.users))
    ends = np.concatenate([np.zeros(int((user < 0).sum()), np.int64), (sequences.start[1:] - np.cumsum(counts))[user[user >= 0]]])
    target = ends + np.arange(len(user)) - int((user < 0).sum())
    length = pc.list_value_length(published["history"]).to_numpy().astype(np.int64)
    _check_official(sequences, published, _Rows(target, length, split, number, np.zeros_like(target)), user)
    return _finish(sequences, _Rows(target, length, split, number, np.zeros_like(target)), max_history, {})


def _leave_one_out(sequences: UserInteractions) -> tuple[_Rows, dict[str, int]]:
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
    rows = _Rows(target, length, split, number, np.zeros_like(target))
    return rows, {"user with fewer than 3 interactions": short} if short else {}


def _temporal(sequences: UserInteractions) -> _Rows:
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
    return _Rows(target, length[target], split, rank - cuts[split], np.zeros_like(target))


def _check_official(sequences: UserInteractions, published: pa.Table, rows: _Rows, user: Int[np.ndarray, " R"]) -> None:
    start = np.where(user >= 0, sequences.start[user], 0)
    inside = (user >= 0) & (rows.length > 0) & (rows.target - rows.length >= start)
    safe = np.where(inside, rows.target, 0)
    good = inside & (sequences.item[safe] == look_up(published["target"], sequences.items))
    length = np.where(good, rows.length, 0)
    found = look_up(pc.list_flatten(published["history"].filter(pa.array(good))), sequences.items)
    differs = np.flatnonzero(found != sequences.item[ranges(safe - length, length)])
    owner = np.repeat(np.arange(len(good)), length)
    good[owner[differs]] = False
    if good.all():
        return
    first = int(np.flatnonzero(~good)[0])
    owner_id, target = published["user_id"][first].as_py(), published["target"][first].as_py()
    raise ValueError(
        f"splits/{SPLITS[rows.split[first]]}.parquet, row {int(rows.number[first])}: user {owner_id!r}, "
        f"target {target!r}: {int((~good).sum())} of {len(good)} split rows do not follow the "
        f"interactions; the rows of a user (train, valid, test, in this order) must be the user's last interactions, each "
        f"with a history of at least one item that ends just before its target"
    )


def _with_earlier_rows(sequences: UserInteractions, rows: _Rows, max_history: int) -> _Rows:
    """Cut histories, and let a user's train rows begin with all that any of them holds.

    Where a later row reaches further back than the first, the first is given that history; where the cut takes items away
    from it, rows for those targets precede it.
    """
    train = np.flatnonzero(rows.split == 0)
    user = sequences.user[rows.target[train]]
    begins = np.flatnonzero(np.append(True, user[1:] != user[:-1])[: len(train)])
    first = train[begins]
    length = rows.length.copy()
    if len(first):
        length[first] = rows.target[first] - np.minimum.reduceat((rows.target - rows.length)[train], begins)
    lost = np.maximum(length[first] - max_history, 0)
    target = ranges(rows.target[first] - lost, lost)
    back = np.repeat(rows.target[first], lost) - target
    earlier = _Rows(target, np.full_like(target, max_history), np.zeros_like(target), np.repeat(rows.number[first], lost), back)
    rows = rows._replace(length=length)
    whole = _Rows(*(np.concatenate(pair) for pair in zip(earlier, rows, strict=True)))
    order = np.argsort(whole.target, kind="stable")
    return _Rows(*(part[order] for part in whole._replace(length=np.minimum(whole.length, max_history))))


def _finish(sequences: UserInteractions, rows: _Rows, max_history: int, rejected: dict[str, int]) -> Histories:
    rows = _with_earlier_rows(sequences, rows, max_history)
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
        "earlier_train_rows": int((rows.back > 0).sum()),
        "num_users": len(np.unique(sequences.user[rows.target])),
        "num_targets": len(np.unique(sequences.item[rows.target])),
        "equal_timestamp_rate": round(float(equal.sum() / max(1, same_user.sum())), 6),
        "equal_timestamps": "keep the raw order",
    }
    return Histories(pa.concat_tables(blocks), rejected, facts)


def _block(sequences: UserInteractions, rows: _Rows) -> pa.Table:
    flat = sequences.items.take(pa.array(sequences.item[ranges(rows.target - rows.length, rows.length)]))
    offsets = np.concatenate([[0], np.cumsum(rows.length)]).astype(np.int32)
    split = pa.array(SPLITS).take(pa.array(rows.split))
    number = pc.utf8_lpad(pa.array(rows.number).cast(pa.string()), width=9, padding="0")
    back = pa.array(rows.back).cast(pa.string())
    tail = pc.if_else(pa.array(rows.back > 0), pc.binary_join_element_wise(number, back, "."), number)
    columns = {
        "example_id": pc.binary_join_element_wise(split, tail, "-"),
        "user_id": sequences.users.take(pa.array(sequences.user[rows.target])),
        "split": split,
        "history": pa.ListArray.from_arrays(pa.array(offsets), flat),
        "target": sequences.items.take(pa.array(sequences.item[rows.target])),
        "target_timestamp": sequences.timestamp.take(pa.array(rows.target)).combine_chunks(),
        "last_timestamp": sequences.timestamp.take(pa.array(rows.target - 1)).combine_chunks(),
    }
    return pa.table(columns, schema=TABLES["histories"].schema)
