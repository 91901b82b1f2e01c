"""Make training, validation and test examples from interactions, one part of the users at a time.

All of it is integer arithmetic on sorted arrays; ids are looked up once, block by block, at the end.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from digr.data.ids import IdIndex, build_id_index
from digr.data.sequences import UserInteractions, ranges
from digr.tables import SPLITS, TABLES

BLOCK_VALUES = 10_000_000
"""History items whose ids are looked up at once; keeps each string array far below Arrow's 2 GiB."""


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


class HistoryBuilder:
    """Makes rows of `histories` from the interactions, one part of the users at a time, in the order of users.

    `leave_one_out`: a user's last item is the test target, the one before it the valid target. All earlier items make one
    train row, the last of them its target. Items that do not fit into its history become targets of rows before it, so that
    every train interaction is in some train row. Users with fewer than three interactions are left out. A user with exactly
    three has no train row, because a history may not be empty.

    `temporal`: every item but a user's first is a target. The first 80 % of the targets by time are train, the next 10 %
    valid, the last 10 % test; equal timestamps keep the raw row order. A user can be in all three splits. Histories of valid
    and test rows may hold train targets, never the reverse.

    `official`: the published rows of a data set, histories cut to the newest `max_history` items. Items cut from a user's
    first train row become targets of rows before it, so that every train interaction stays in some train row; their example
    ids end in .1, .2 and so on, counted back from that row. If later train rows reach further back, the first row gets the
    longer history, see `digr.data.transitions`. The rows of a user (train, valid, test) must be the user's last interactions
    in order, each history the items just before its target. So splits are disjoint, ordered in time, and targets have times.
    """

    def __init__(
        self, split: Literal["official", "leave_one_out", "temporal"], max_history: int, items: pa.Array, num_targets: int
    ) -> None:
        """Begin.

        Args:
            split: how targets are held out.
            max_history: items kept of a history, the newest; at least 1.
            items: ids of all items; interactions hold positions in this array.
            num_targets: interactions of all parts, without each user's first.
        """
        self._split, self._max_history = split, max_history
        self._cuts = np.array([0, num_targets * 8 // 10, num_targets * 9 // 10])
        self._index: IdIndex | None = build_id_index(items) if split == "official" else None
        self._sizes, self._published = np.zeros(len(SPLITS), np.int64), np.zeros(len(SPLITS), np.int64)
        self._in_train = np.zeros(len(items), bool)
        self._targets = np.zeros((len(SPLITS), len(items)), np.int32)
        self._counts = Counter[str]()

    def add(self, sequences: UserInteractions, published: pa.Table | None = None) -> pa.Table:
        """Return the examples of some users.

        Args:
            sequences: their interactions; ranked by time for a temporal split.
            published: their official rows (user_id, split, row, history, target), a user's in the order of splits and rows.

        Raises:
            ValueError: an official row does not match the interactions: the splits overlap, are out of order or belong to
                other data.
        """
        if self._split == "official":
            assert published is not None and self._index is not None
            rows = _official(sequences, published, self._index)
        else:
            rows = self._leave_one_out(sequences) if self._split == "leave_one_out" else self._temporal(sequences)
        rows = _with_earlier_rows(sequences, rows, self._max_history)
        self._sizes += np.bincount(rows.split, minlength=len(SPLITS))
        self._count_items(sequences, rows)
        same = sequences.user[1:] == sequences.user[:-1]
        dated = same & sequences.timed[1:] & sequences.timed[:-1]
        self._counts["earlier"] += int((rows.back > 0).sum())
        self._counts["users"] += len(np.unique(sequences.user[rows.target]))
        self._counts["all_users"] += len(sequences.users)
        self._counts["dated"] += int(dated.sum())
        self._counts["equal"] += int((dated & (np.diff(sequences.milliseconds) == 0)).sum())
        self._counts["interactions"] += len(sequences.item)
        self._counts["different"] += len(np.unique(sequences.user * len(sequences.items) + sequences.item))
        step = max(1, BLOCK_VALUES // max(1, int(rows.length.max(initial=1))))
        blocks = [_block(sequences, _Rows(*(part[at : at + step] for part in rows))) for at in range(0, len(rows.target), step)]
        return pa.concat_tables(blocks) if blocks else TABLES["histories"].schema.empty_table()

    def finish(self) -> tuple[dict[str, int], dict[str, Any]]:
        """Return the users that were left out (reason -> count) and the facts of all rows.

        Raises:
            ValueError: a split is empty.
        """
        sizes = {name: int(self._sizes[index]) for index, name in enumerate(SPLITS)}
        short, dated = self._counts["short"], self._counts["dated"]
        for name, size in sizes.items():
            if not size:
                raise ValueError(
                    f"histories: split {name} is empty (rows: {sizes}); the data has too few interactions for this split"
                    + (f": {short:,} of {self._counts['all_users']:,} users have fewer than 3" if short else "")
                )
        facts = {
            "split_rows": sizes,
            "earlier_train_rows": self._counts["earlier"],
            "num_users": self._counts["users"],
            "num_targets": int(self._targets.any(0).sum()),
            "equal_timestamp_rate": round(self._counts["equal"] / dated, 6) if dated else None,
            "repeat_rate": round(1 - self._counts["different"] / self._counts["interactions"], 6),
            "cold_target_rate": {
                name: round(float(self._targets[index][~self._in_train].sum() / sizes[name]), 6)
                for index, name in enumerate(SPLITS)
                if index
            },
        }
        return {"user with fewer than 3 interactions": short} if short else {}, facts

    def counted(self) -> dict[str, np.ndarray]:
        """Return what the parts so far add to later parts and to `finish`, as arrays."""
        counts = np.array([[name, str(count)] for name, count in self._counts.items()], np.str_).reshape(-1, 2)
        arrays = {"sizes": self._sizes, "published": self._published, "in_train": self._in_train, "targets": self._targets}
        return arrays | {"counts": counts}

    def restore(self, counted: Mapping[str, np.ndarray]) -> None:
        """Go on after the parts whose `counted` another builder of the same data returned."""
        self._sizes, self._published = counted["sizes"], counted["published"]
        self._in_train, self._targets = counted["in_train"], counted["targets"]
        self._counts = Counter({str(name): int(count) for name, count in counted["counts"]})

    def _count_items(self, sequences: UserInteractions, rows: _Rows) -> None:
        """Count the items that are targets of each split, and the items of train rows, as target or in a history."""
        for index in range(len(SPLITS)):
            np.add.at(self._targets[index], sequences.item[rows.target[rows.split == index]], 1)
        train = rows.split == 0
        start = rows.target[train] - rows.length[train]
        self._in_train[sequences.item[ranges(start, rows.length[train] + 1)]] = True

    def _leave_one_out(self, sequences: UserInteractions) -> _Rows:
        counts = np.diff(sequences.start)
        users = np.flatnonzero(counts >= 3)
        self._counts["short"] += int((counts < 3).sum())
        # a user's train target is third from last; with three interactions it would have no history
        offset = np.tile(np.array([3, 2, 1]), (len(users), 1))
        target = sequences.start[users + 1][:, None] - offset
        length = target - sequences.start[users][:, None]
        split = np.tile(np.arange(3), (len(users), 1))
        usable = length.ravel() > 0
        target, length, split = target.ravel()[usable], length.ravel()[usable], split.ravel()[usable]
        number = np.zeros(len(target), np.int64)
        for index in range(len(SPLITS)):
            inside = split == index
            number[inside] = self._published[index] + np.arange(int(inside.sum()))
            self._published[index] += int(inside.sum())
        return _Rows(target, length, split, number, np.zeros_like(target))

    def _temporal(self, sequences: UserInteractions) -> _Rows:
        length = np.arange(len(sequences.user)) - sequences.start[sequences.user]
        target = np.flatnonzero(length > 0)
        rank = sequences.rank[target]
        assert (rank >= 0).all(), "a temporal split needs ranked targets"
        split = np.searchsorted(self._cuts, rank, side="right") - 1
        return _Rows(target, length[target], split, rank - self._cuts[split], np.zeros_like(target))


def _official(sequences: UserInteractions, published: pa.Table, items: IdIndex) -> _Rows:
    """Find the published rows of some users in their interactions."""
    user = pc.index_in(published["user_id"], value_set=sequences.users).to_numpy().astype(np.int64)
    counts = np.bincount(user, minlength=len(sequences.users))
    # the last row of a user belongs to the user's last interaction, the one before to the one before, and so on
    target = (sequences.start[1:] - np.cumsum(counts))[user] + np.arange(len(user))
    length = pc.list_value_length(published["history"]).to_numpy().astype(np.int64)
    split, number = (published[name].to_numpy().astype(np.int64) for name in ("split", "row"))
    rows = _Rows(target, length, split, number, np.zeros_like(target))
    _check_official(sequences, published, rows, items)
    return rows


def _check_official(sequences: UserInteractions, published: pa.Table, rows: _Rows, items: IdIndex) -> None:
    if not len(published):
        return
    user = pc.index_in(published["user_id"], value_set=sequences.users).to_numpy().astype(np.int64)
    inside = (rows.length > 0) & (rows.target - rows.length >= sequences.start[user])
    safe = np.where(inside, rows.target, 0)
    good = inside & (sequences.item[safe] == items.find(published["target"]))
    length = np.where(good, rows.length, 0)
    found = items.find(pc.list_flatten(published["history"].filter(pa.array(good))))
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
    """Cut histories, and extend a user's first train row to all interactions that the user's train rows hold.

    If a later row reaches further back than the first, the first gets that history. Items that the cut takes from the first
    become targets of rows before it.
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
        "target_timestamp": sequences.timestamp.take(pa.array(rows.target)),
        "last_timestamp": sequences.timestamp.take(pa.array(rows.target - 1)),
    }
    return pa.table(columns, schema=TABLES["histories"].schema)
