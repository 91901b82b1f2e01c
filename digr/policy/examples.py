"""Histories as text for the policy: one long sequence per user for training, one prompt per row for validation.

A user's consecutive train rows overlap almost entirely, so they are merged: each interaction is a target exactly once, after
as many earlier interactions as fit into the window. Training on every position of a sequence, instead of each row's target
only, is the largest gain without extra cost in GRID's study of generative recommenders (arXiv 2507.22224).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from digr.data.ids import IdIndex
from digr.data.transitions import merge_rows, user_begins
from digr.policy.vocabulary import history_prompt
from digr.tables import table_spec


class Sids(NamedTuple):
    """The text of every item's SID."""

    item_index: IdIndex
    texts: list[str]
    """Text of each of `item_index.ids`, see `vocabulary.sid_texts`."""


def policy_examples(histories: pa.Table, sids: Sids, max_history: int, shown: pa.Array | None = None) -> pa.Table:
    """Make the `policy_examples` rows of a part of `histories`: train sequences and validation prompts.

    Args:
        histories: rows of `histories`, each user's train rows contiguous and in time order. A user must not be split between
            two calls, or some interactions would be targets twice.
        sids: text of every item's SID.
        max_history: most items of a prompt; a training sequence has one more.
        shown: the interests that each row's prompt shows, see `ShownInterests`; training sequences show none.

    Raises:
        ValueError: a row has an item without SID or an empty history, or a user's train rows are out of order.
    """
    train = histories.filter(pc.equal(histories["split"], "train"))
    is_valid = pc.equal(histories["split"], "valid").combine_chunks()
    valid = prompt_examples(histories.filter(is_valid), sids, max_history, None if shown is None else shown.filter(is_valid))
    return pa.concat_tables([sequence_examples(train, sids, max_history), valid])


def sequence_examples(train: pa.Table, sids: Sids, max_history: int) -> pa.Table:
    """Merge each user's train rows into sequences in which every interaction is a target exactly once.

    A user's first interaction is never a target. A sequence longer than `max_history` + 1 items becomes several overlapping
    windows; in all but the first, at least half of the items are prompt.
    """
    if not len(train):
        return table_spec("policy_examples").schema.empty_table()
    _check_histories(train)
    example_ids, users = train["example_id"].combine_chunks(), train["user_id"].combine_chunks()
    item_ids, row_of = merge_rows(train)
    items = item_places(item_ids, sids, lambda at: f"of example {example_ids[int(row_of[at])]} ")
    sequence_start = np.searchsorted(row_of, np.flatnonzero(user_begins(train["user_id"])))
    windows = cut_windows(np.diff(np.append(sequence_start, len(items))), max_history + 1)
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


def prompt_examples(rows: pa.Table, sids: Sids, max_history: int, shown: pa.Array | None = None) -> pa.Table:
    """Make one example per row: its history as prompt, its target's SID as completion.

    Args:
        shown: the interests that each row's prompt shows before its history, or null; see `ShownInterests`.
    """
    _check_histories(rows)
    example_ids, history = rows["example_id"].combine_chunks(), rows["history"].combine_chunks()
    ends = np.cumsum(history.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64))
    items = item_places(history.flatten(), sids, lambda at: f"of example {example_ids[int(np.searchsorted(ends, at, 'right'))]} ")
    targets = item_places(rows["target"].combine_chunks(), sids, lambda at: f"of example {example_ids[at]} ")
    starts = np.maximum(np.append(0, ends[:-1])[: len(ends)], ends - max_history)
    texts = np.array(sids.texts, object)
    spans = zip(starts.tolist(), ends.tolist(), [None] * len(rows) if shown is None else shown.to_pylist(), strict=True)
    return _table(
        example_ids=example_ids,
        user_ids=rows["user_id"].combine_chunks(),
        split=rows["split"].combine_chunks(),
        prompts=[history_prompt(texts[items[start:end]].tolist(), interests) for start, end, interests in spans],
        completions=texts[targets].tolist(),
        targets=rows["target"].combine_chunks(),
    )


class Windows(NamedTuple):
    """Windows over sequences; positions count from each sequence's start."""

    sequence: Int[np.ndarray, " W"]
    begin: Int[np.ndarray, " W"]
    first: Int[np.ndarray, " W"]
    """First target; all items before it are prompt."""
    end: Int[np.ndarray, " W"]


def cut_windows(lengths: Int[np.ndarray, " S"], window: int) -> Windows:
    """Cut sequences into windows of at most `window` items, each item but a sequence's first a target exactly once.

    The first window begins at the sequence's start; each later one has window // 2 new targets, and as many items before
    them as fit.

    Args:
        lengths: items of each sequence, at least 2.
        window: items of a window, at least 2.
    """
    stride = window // 2
    counts = 1 + -(-np.maximum(lengths - window, 0) // stride)
    sequence = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts)
    end = np.minimum(lengths[sequence], window + number * stride)
    first = np.where(number == 0, 1, window + (number - 1) * stride)
    return Windows(sequence, np.maximum(end - window, 0), first, end)


def _check_histories(rows: pa.Table) -> None:
    empty = np.flatnonzero(pc.list_value_length(rows["history"]).to_numpy() == 0)
    if len(empty):
        name = rows["example_id"][int(empty[0])]
        raise ValueError(f"histories: example {name} has an empty history; drop such rows in prepare_data")


def item_places(item_ids: pa.Array, sids: Sids, owner_of: Callable[[int], str] = lambda at: "") -> Int[np.ndarray, " P"]:
    """Find items among those with a SID.

    Raises:
        ValueError: an item has no SID; `owner_of` returns where the item at a position comes from, for the message.
    """
    found = sids.item_index.find(item_ids)
    unknown = np.flatnonzero(found < 0)
    if len(unknown):
        at = int(unknown[0])
        raise ValueError(
            f"histories: item {item_ids[at].as_py()!r} {owner_of(at)}has no semantic ID in item_sids "
            f"({len(unknown)} such places in all); rebuild item_sids from this run's items"
        )
    return found


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
