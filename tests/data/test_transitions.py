"""Every training interaction and step is seen exactly once, whatever the split, against a slow reading of the definition."""

from collections import Counter
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digr.data import transitions
from digr.data.ids import build_id_index
from digr.data.transitions import COLUMNS, count_items, merge_rows, steps_of, training_sequences
from digr.tables import SPLITS, TABLES
from tests.data.prepared import build_histories

ITEMS = build_id_index(pa.array(list("abcdef")))
Log = dict[str, list[tuple[str, int]]]


def _interactions(log: Log) -> pa.Table:
    rows = [
        {"user_id": user, "position": place, "item_id": item, "timestamp": time}
        for user, steps in log.items()
        for place, (item, time) in enumerate(steps)
    ]
    return pa.Table.from_pylist(rows, TABLES["interactions"].schema)


@st.composite
def logs(draw: Any) -> Log:
    """Draw users' items with times that never fall."""
    found = {}
    for user in range(draw(st.integers(1, 6))):
        items = draw(st.text("abcdef", min_size=1, max_size=12))
        times = sorted(draw(st.lists(st.integers(0, 20), min_size=len(items), max_size=len(items))))
        found[f"u{user}"] = list(zip(items, times, strict=True))
    return found


def _official(log: Log, draw: Any) -> dict[str, pa.Table]:
    """Publish the last rows of each user, with histories of any length."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
    for user, steps in log.items():
        items = [item for item, _ in steps]
        cuts = sorted(draw(st.lists(st.integers(1, len(items)), min_size=3, max_size=3)))
        for at in range(draw(st.integers(1, len(items))), len(items)):
            split = SPLITS[min(sum(at >= cut for cut in cuts), 2)]
            begin = draw(st.integers(0, at - 1))
            rows[split].append({"user_id": user, "history": items[begin:at], "target": items[at]})
    schema = pa.schema([("user_id", pa.string()), ("history", pa.list_(pa.string())), ("target", pa.string())])
    return {name: pa.Table.from_pylist(found, schema) for name, found in rows.items()}


def _expected(log: Log, histories: pa.Table) -> dict[str, list[str]]:
    """Read which positions of each user the train rows hold: a row's history ends just before its target."""
    found: dict[str, set[int]] = {}
    rows = histories.to_pylist()
    for user, steps in log.items():
        mine = [row for row in rows if row["user_id"] == user]
        for back, row in enumerate(reversed(mine), 1):
            target = len(steps) - back
            assert steps[target][0] == row["target"]
            if row["split"] == "train":
                found.setdefault(user, set()).update(range(target - len(row["history"]), target + 1))
    for places in found.values():
        assert sorted(places) == list(range(min(places), max(places) + 1))
    return {user: [log[user][place][0] for place in sorted(places)] for user, places in found.items()}


def _read(chunks: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for chunk in chunks:
        bounds = pairwise(chunk.start.tolist())
        for user, (start, end) in zip(chunk.user_ids.to_pylist(), bounds, strict=True):
            assert user not in found, "a user is in one chunk"
            found[user] = ITEMS.ids.take(pa.array(chunk.item[start:end])).to_pylist()
    return found


@pytest.mark.parametrize("split", ["leave_one_out", "temporal", "official"])
@settings(max_examples=40, deadline=None)
@given(data=st.data(), log=logs(), max_history=st.integers(1, 5), rows=st.integers(1, 7))
def test_each_training_interaction_and_step_is_there_exactly_once(split, data, log, max_history, rows):
    """Behavioural labels and SID diagnostics took each row's last step: a fifth of the steps under leave-one-out."""
    try:
        if split == "official":
            published = _official(log, data.draw)
            histories = build_histories(_interactions(log), "official", max_history, published).table
        else:
            histories = build_histories(_interactions(log), split, max_history).table
    except ValueError as error:
        assert "is empty" in str(error)
        return
    expected = _expected(log, histories)
    if split == "leave_one_out":
        assert expected == {user: [item for item, _ in steps[:-2]] for user, steps in log.items() if len(steps) > 3}
    chunks = list(training_sequences(histories.to_batches(max_chunksize=rows), ITEMS.find))
    assert _read(chunks) == expected
    assert count_items(chunks, 6).tolist() == [sum(items.count(item) for items in expected.values()) for item in "abcdef"]
    for max_gap in (1, 3):
        wanted = Counter(
            (user, items[at], items[at + gap], gap)
            for user, items in expected.items()
            for gap in range(1, max_gap + 1)
            for at in range(len(items) - gap)
        )
        found: Counter[tuple[Any, ...]] = Counter()
        for chunk in chunks:
            steps = steps_of(chunk, max_gap)
            users, names = chunk.user_ids.take(pa.array(steps.user)).to_pylist(), ITEMS.ids
            before, after = (names.take(pa.array(side)).to_pylist() for side in (steps.before, steps.after))
            found.update(zip(users, before, after, steps.gap.tolist(), strict=True))
        assert found == wanted


def _rows(*rows: tuple[str, str, str, str]) -> pa.Table:
    users, splits, histories, targets = zip(*rows, strict=True)
    lists = pa.array([list(history) for history in histories], pa.list_(pa.string()))
    return pa.table(dict(zip(COLUMNS, (users, splits, lists, targets), strict=True)))


def test_rows_of_validation_and_test_are_passed_over():
    rows = _rows(("u", "train", "a", "b"), ("u", "valid", "ab", "c"), ("u", "test", "abc", "d"), ("v", "test", "e", "f"))
    assert _read(training_sequences(rows.to_batches(), ITEMS.find)) == {"u": ["a", "b"]}


def test_chunks_hold_a_bounded_number_of_history_items_however_large_a_batch_is(monkeypatch):
    monkeypatch.setattr(transitions, "CHUNK_ITEMS", 12)
    rows = _rows(*((f"u{user}", "train", "abcdef"[: 1 + user % 3], "a") for user in range(40)))
    chunks = list(training_sequences(rows.to_batches(), ITEMS.find))
    assert max(len(chunk.item) for chunk in chunks) <= 4 * 4 and sum(len(chunk.user_ids) for chunk in chunks) == 40


def test_an_unknown_item_has_no_steps_and_leaves_its_neighbours_two_apart():
    (chunk,) = training_sequences([_rows(("u", "train", "a?b", "c"))], ITEMS.find)
    assert chunk.item.tolist() == [0, -1, 1, 2]
    assert [column.tolist() for column in steps_of(chunk, 2)] == [[0, 0], [1, 0], [2, 1], [1, 2]]
    assert count_items([chunk], 3).tolist() == [1, 1, 1]


def test_no_rows_give_no_chunk_and_single_interactions_no_steps():
    assert (
        list(training_sequences([], ITEMS.find)) == list(training_sequences([_rows(("u", "test", "a", "b"))], ITEMS.find)) == []
    )
    (chunk,) = training_sequences([_rows(("u", "train", "", "b"))], ITEMS.find)
    assert [len(column) for column in steps_of(chunk, 3)] == [0, 0, 0, 0]


def test_each_merged_item_names_the_row_that_brought_it():
    items, row = merge_rows(_rows(("u", "train", "ab", "c"), ("u", "train", "bc", "d"), ("v", "train", "e", "f")))
    assert ("".join(items.to_pylist()), row.tolist()) == ("abcdef", [0, 0, 0, 1, 2, 2])


@pytest.mark.parametrize("second", [("ab", "d"), ("", "d"), ("fabc", "d")])
def test_a_row_that_does_not_go_on_from_the_one_before_is_an_error(second):
    rows = _rows(("t", "train", "a", "b"), ("u", "train", "ab", "c"), ("u", "train", *second))
    message = r"histories: 1 train rows do not continue the row before \(first: user 'u'\).*run prepare_data again"
    with pytest.raises(ValueError, match=message):
        list(training_sequences(rows.to_batches(max_chunksize=2), ITEMS.find))


def test_memory_is_that_of_a_chunk_where_batches_are_many():
    """The largest chunk of a stream of many batches is as large as that of a short one."""
    batch = _rows(*((f"u{user}", "train", "abc", "d") for user in range(10)))
    renamed = (batch.set_column(0, "user_id", pa.array([f"b{number}-{user}" for user in range(10)])) for number in range(50))
    assert {len(chunk.item) for chunk in training_sequences(renamed, ITEMS.find)} <= {4, 36, 40}
