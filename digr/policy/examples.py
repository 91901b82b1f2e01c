"""Histories as text for the policy: one long sequence per user for training, one prompt per row for validation.

A user's consecutive train rows overlap almost entirely, so they are merged: each interaction is a target exactly once,
after all the interactions before it that fit the window. Training on every position of a sequence, instead of on each
row's target only, is the largest free gain in GRID's study of generative recommenders (arXiv 2507.22224).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int

from digr.data.ids import IdIndex
from digr.policy.vocabulary import history_prompt
from digr.tables import table_spec


class Sids(NamedTuple):
    """The text of every item's SID."""

    item_index: IdIndex
    texts: list[str]
    """Text of each of `item_index.ids`, see `vocabulary.sid_texts`."""


class _Rows(NamedTuple):
    """Train rows as item positions: row i's history is `items[start[i]:end[i]]`."""

    items: Int[np.ndarray, " P"]
    start: Int[np.ndarray, " R"]
    end: Int[np.ndarray, " R"]
    target: Int[np.ndarray, " R"]


def policy_examples(histories: pa.Table, sids: Sids, max_history: int) -> pa.Table:
    """Make the `policy_examples` rows of a part of `histories`: train sequences and validation prompts.

    Args:
        histories: rows of `histories`, each user's train rows contiguous and in time order. A user cut by the edge of
            a part becomes two sequences: those targets of the second that lie in its first row's history occur twice.
        sids: text of every item's SID.
        max_history: items of a prompt at most; a training sequence has one more.

    Raises:
        ValueError: a row names an item without SID, or has an empty history.
    """
    train = histories.filter(pc.equal(histories["split"], "train"))
    valid = histories.filter(pc.equal(histories["split"], "valid"))
    return pa.concat_tables([sequence_examples(train, sids, max_history), prompt_examples(valid, sids, max_history)])


def sequence_examples(train: pa.Table, sids: Sids, max_history: int) -> pa.Table:
    """Merge each user's train rows into sequences in which every interaction is a target exactly once.

    A user's first row makes all but the oldest item of its history targets too. A sequence longer than
    `max_history` + 1 items becomes several overlapping windows; in all but the first, at least half are prompt.
    A row that does not go on from the one before it starts anew, with its history as prompt only.
    """
    rows, example_ids = _rows_of(train, sids, max_history), train["example_id"].combine_chunks()
    if not len(rows.target):
        return table_spec("policy_examples").schema.empty_table()
    users = train["user_id"].combine_chunks()
    new_user = np.ones(len(users), bool)
    new_user[1:] = pc.not_equal(users[1:], users[:-1]).to_numpy(zero_copy_only=False)
    starts = new_user | ~_goes_on(rows)
    items, row_of = _join(rows, starts)
    sequence_start = np.flatnonzero(starts[row_of] & np.r_[True, row_of[1:] != row_of[:-1]])
    history_lengths = (rows.end - rows.start)[starts]
    windows = cut_windows(
        lengths=np.diff(np.r_[sequence_start, len(items)]),
        first_targets=np.where(new_user[starts], 1, history_lengths),
        window=max_history + 1,
    )
    shift = sequence_start[windows.sequence]
    begin, first, end = windows.begin + shift, windows.first + shift, windows.end + shift
    texts = np.array(sids.texts, object)[items]
    last_rows = pa.array(row_of[end - 1])
    return _table(
        example_ids=example_ids.take(last_rows),
        user_ids=users.take(last_rows),
        split=pa.array(["train"] * len(last_rows), pa.string()),
        prompts=[history_prompt(texts[a:b].tolist()) for a, b in zip(begin.tolist(), first.tolist(), strict=True)],
        completions=["".join(texts[a:b].tolist()) for a, b in zip(first.tolist(), end.tolist(), strict=True)],
        targets=sids.item_index.ids.take(pa.array(items[end - 1])),
    )


def prompt_examples(rows: pa.Table, sids: Sids, max_history: int) -> pa.Table:
    """Make one example per row: its history as prompt, its target's SID as completion."""
    found = _rows_of(rows, sids, max_history)
    texts = np.array(sids.texts, object)
    spans = zip(found.start.tolist(), found.end.tolist(), strict=True)
    return _table(
        example_ids=rows["example_id"].combine_chunks(),
        user_ids=rows["user_id"].combine_chunks(),
        split=rows["split"].combine_chunks(),
        prompts=[history_prompt(texts[found.items[start:end]].tolist()) for start, end in spans],
        completions=texts[found.target].tolist(),
        targets=rows["target"].combine_chunks(),
    )


class Windows(NamedTuple):
    """Windows over sequences, positions counted from each sequence's start."""

    sequence: Int[np.ndarray, " W"]
    begin: Int[np.ndarray, " W"]
    first: Int[np.ndarray, " W"]
    """First target; what is before it is prompt."""
    end: Int[np.ndarray, " W"]


def cut_windows(lengths: Int[np.ndarray, " S"], first_targets: Int[np.ndarray, " S"], window: int) -> Windows:
    """Cut sequences into windows of at most `window` items, each item from the first target on a target exactly once.

    The first window starts at the sequence's start; each later one brings window // 2 new targets, and fills up with
    the items before them.

    Args:
        lengths: items of each sequence, more than its first target's position.
        first_targets: position of each sequence's first target, at least 1 and below `window`.
        window: items of a window, at least 2.
    """
    stride = window // 2
    counts = 1 + -(-np.maximum(lengths - window, 0) // stride)
    sequence = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts)
    end = np.minimum(lengths[sequence], window + number * stride)
    first = np.where(number == 0, first_targets[sequence], window + (number - 1) * stride)
    return Windows(sequence, np.maximum(end - window, 0), first, end)


def _rows_of(table: pa.Table, sids: Sids, max_history: int) -> _Rows:
    """Look up all items, and cut histories to the newest."""
    history = table["history"].combine_chunks()
    offsets = history.offsets.to_numpy().astype(np.int64)
    offsets, values = offsets - (offsets[0] if len(offsets) else 0), history.flatten()
    if len(table) and int(np.diff(offsets).min()) < 1:
        row = int(np.diff(offsets).argmin())
        raise ValueError(f"histories: example {table['example_id'][row]} has an empty history; drop such rows in prepare_data")
    items = item_places(
        values, sids, lambda at: f"of example {table['example_id'][int(np.searchsorted(offsets, at, 'right')) - 1]} "
    )
    target = item_places(table["target"].combine_chunks(), sids, lambda at: f"of example {table['example_id'][at]} ")
    return _Rows(items, np.maximum(offsets[:-1], offsets[1:] - max_history), offsets[1:], target)


def item_places(item_ids: pa.Array, sids: Sids, owner_of: Callable[[int], str] = lambda at: "") -> Int[np.ndarray, " P"]:
    """Find items among those with a SID.

    Raises:
        ValueError: an item has none; `owner_of` says after its position where it is mentioned.
    """
    found = sids.item_index.find(item_ids)
    unknown = np.flatnonzero(found < 0)
    if len(unknown):
        at = int(unknown[0])
        raise ValueError(
            f"histories: item {item_ids[at].as_py()!r} {owner_of(at)}has no semantic ID in item_sids "
            f"({len(unknown)} such mentions); rebuild item_sids from this run's items"
        )
    return found


def _goes_on(rows: _Rows) -> Bool[np.ndarray, " R"]:
    """Whether a row's history ends with the target of the row before it."""
    lengths = rows.end - rows.start
    result = np.zeros(len(lengths), bool)
    result[1:] = (rows.items[rows.end[1:] - 1] == rows.target[:-1]) & (lengths[1:] <= lengths[:-1] + 1)
    return result


def _join(rows: _Rows, starts: Bool[np.ndarray, " R"]) -> tuple[Int[np.ndarray, " P"], Int[np.ndarray, " P"]]:
    """Write all sequences one behind the other: history and target of a starting row, else the target only."""
    counts = np.where(starts, rows.end - rows.start, 0) + 1
    row_of = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(row_of)) - np.repeat(np.cumsum(counts) - counts, counts)
    is_target = place == counts[row_of] - 1
    source = np.where(is_target, 0, rows.start[row_of] + place)
    return np.where(is_target, rows.target[row_of], rows.items[source]), row_of


def _table(
    *, example_ids: pa.Array, user_ids: pa.Array, split: pa.Array, prompts: list[str], completions: list[str], targets: pa.Array
) -> pa.Table:
    columns = {
        "example_id": example_ids,
        "user_id": user_ids,
        "task": pa.array(["sequence"] * len(prompts), pa.string()),
        "split": split,
        "prompt": pa.array(prompts, pa.string()),
        "completion": pa.array(completions, pa.string()),
        "target": targets,
    }
    return pa.table(columns, schema=table_spec("policy_examples").schema)
