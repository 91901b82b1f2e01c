"""Splits and histories equal a slow, literal reading of their definition."""

from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digr.data.histories import BLOCK_VALUES
from digr.tables import SPLITS, TABLES, check_table, conform
from tests.data.prepared import build_histories
from tests.data.test_common_form import prepare
from tests.real_data import real_folder

Row = tuple[str, int, str, int | None]


def _interactions(rows: list[Row]) -> pa.Table:
    columns = list(zip(*rows, strict=True))
    times = [None if value is None else datetime.fromtimestamp(value, UTC) for value in columns[3]]
    return pa.table(
        {"user_id": columns[0], "position": columns[1], "item_id": columns[2], "timestamp": times, "rating": [None] * len(rows)},
        schema=TABLES["interactions"].schema,
    )


def _of(user: str, items: str, start: int | None = None) -> list[Row]:
    return [(user, index, item, None if start is None else start + index) for index, item in enumerate(items)]


def _short(table: pa.Table) -> list[tuple[str, str, str, str]]:
    return [(row["example_id"], row["user_id"], "".join(row["history"]), row["target"]) for row in table.to_pylist()]


@st.composite
def logs(draw: Any, timed: bool) -> list[Row]:
    """Draw interactions of a few users whose times never fall along positions, in any row order."""
    rows: list[Row] = []
    for user in range(draw(st.integers(1, 5))):
        items = draw(st.text("abcdef", min_size=1, max_size=9))
        times = sorted(draw(st.lists(st.integers(0, 6), min_size=len(items), max_size=len(items))))
        positions = sorted(draw(st.sets(st.integers(0, 40), min_size=len(items), max_size=len(items))))
        rows += [(f"u{user}", p, i, t if timed else None) for p, i, t in zip(positions, items, times, strict=True)]
    return rows


def test_leave_one_out_holds_out_the_last_two_items_of_a_user():
    made = build_histories(_interactions(_of("u2", "abcde") + _of("u1", "xyzab")), "leave_one_out", max_history=10)
    assert _short(made.table) == [
        ("train-000000000", "u1", "xy", "z"),
        ("valid-000000000", "u1", "xyz", "a"),
        ("test-000000000", "u1", "xyza", "b"),
        ("train-000000001", "u2", "ab", "c"),
        ("valid-000000001", "u2", "abc", "d"),
        ("test-000000001", "u2", "abcd", "e"),
    ]


def test_users_too_short_for_leave_one_out_are_left_out_and_counted():
    made = build_histories(_interactions(_of("a", "xy") + _of("b", "xyz") + _of("c", "xyzx")), "leave_one_out", 10)
    assert made.rejected == {"user with fewer than 3 interactions": 1}
    assert [(row[1], row[0][:5]) for row in _short(made.table)] == [
        ("b", "valid"),
        ("b", "test-"),
        ("c", "train"),
        ("c", "valid"),
        ("c", "test-"),
    ]


def test_a_history_keeps_the_newest_items_oldest_first():
    made = build_histories(_interactions(_of("u", "abcdefgh")), "leave_one_out", max_history=3)
    assert [row[2:] for row in _short(made.table)][-3:] == [("cde", "f"), ("def", "g"), ("efg", "h")]


def test_a_train_history_too_long_for_its_row_continues_in_rows_before_it():
    made = build_histories(_interactions(_of("u", "abcdefgh") + _of("v", "abcd")), "leave_one_out", max_history=3)
    assert _short(made.table)[:3] == [
        ("train-000000000.2", "u", "abc", "d"),
        ("train-000000000.1", "u", "bcd", "e"),
        ("train-000000000", "u", "cde", "f"),
    ]
    assert (made.facts["earlier_train_rows"], made.facts["split_rows"]) == (2, {"train": 4, "valid": 2, "test": 2})


@settings(max_examples=30, deadline=None)
@given(logs(timed=False), st.integers(1, 4))
def test_train_rows_hold_every_train_interaction_once_as_first_history_or_target(rows, max_history):
    sequences = defaultdict(str)
    for user, _, item, _ in sorted(rows):
        sequences[user] += item
    try:
        table = build_histories(_interactions(rows), "leave_one_out", max_history).table
    except ValueError as error:
        assert "is empty" in str(error) and max(map(len, sequences.values())) < 4
        return
    seen = {}
    for row in table.filter(pc.equal(table["split"], "train")).to_pylist():
        seen[row["user_id"]] = seen.get(row["user_id"], "".join(row["history"])) + row["target"]
    assert seen == {user: items[:-2] for user, items in sequences.items() if len(items) > 3}


def test_temporal_splits_cut_the_targets_of_all_users_by_time():
    rows = _of("u1", "abcdef", start=0) + _of("u2", "uvwxyz", start=100)
    made = build_histories(_interactions(rows), "temporal", 10)
    assert made.facts["split_rows"] == {"train": 8, "valid": 1, "test": 1}
    assert _short(made.table)[:2] == [("train-000000000", "u1", "a", "b"), ("train-000000001", "u1", "ab", "c")]
    assert _short(made.table)[-2:] == [("valid-000000000", "u2", "uvwx", "y"), ("test-000000000", "u2", "uvwxy", "z")]


def test_equal_timestamps_keep_the_raw_row_order():
    rows = [
        (user, position, item, 0)
        for position in range(6)
        for user, item in (("b", "xyzxyz"[position]), ("a", "pqrpqr"[position]))
    ]
    made = build_histories(_interactions(rows), "temporal", 10)
    assert made.facts["equal_timestamp_rate"] == 1.0
    by_id = {row[0]: row[1:] for row in _short(made.table)}
    assert by_id["train-000000000"][0] == "b" and by_id["train-000000001"][0] == "a"
    assert by_id["valid-000000000"] == ("b", "xyzxy", "z") and by_id["test-000000000"] == ("a", "pqrpq", "r")


@settings(max_examples=40, deadline=None)
@given(logs(timed=True), st.integers(1, 4))
def test_temporal_histories_equal_a_slow_reading_of_the_definition(rows, max_history):
    sequences = defaultdict(list)
    for user, position, item, time in sorted(rows):
        sequences[user].append((position, item, time))
    raw = {(user, position): index for index, (user, position, _, _) in enumerate(rows)}
    targets = [(seq[at][2], raw[user, seq[at][0]], user, at) for user, seq in sequences.items() for at in range(1, len(seq))]
    targets.sort()
    total = len(targets)
    names = ["train"] * (total * 8 // 10) + ["valid"] * (total * 9 // 10 - total * 8 // 10)
    names += ["test"] * (total - len(names))
    if set(names) != set(SPLITS):
        with pytest.raises(ValueError, match="is empty"):
            build_histories(_interactions(rows), "temporal", max_history)
        return
    expected = {}
    for rank, (name, (_, _, user, at)) in enumerate(zip(names, targets, strict=True)):
        items = [item for _, item, _ in sequences[user]]
        expected[f"{name}-{rank - names.index(name):09d}"] = (user, "".join(items[max(0, at - max_history) : at]), items[at])
    table = check_table("histories", build_histories(_interactions(rows), "temporal", max_history).table, "here")
    assert {row[0]: row[1:] for row in _short(table)} == expected
    # rows of a user are together, in time order
    order = [(row["user_id"], row["target_timestamp"], SPLITS.index(row["split"])) for row in table.to_pylist()]
    assert order == sorted(order)
    last = {name: [r["target_timestamp"] for r in table.to_pylist() if r["split"] == name] for name in SPLITS}
    assert max(last["train"]) <= min(last["valid"]) and max(last["valid"]) <= min(last["test"])


@settings(max_examples=30, deadline=None)
@given(logs(timed=False), st.integers(2, 4))
def test_k_core_equals_removing_one_row_at_a_time(rows, core):
    left = list(rows)
    while True:
        users, items = [row[0] for row in left], [row[2] for row in left]
        short = [row for row in left if users.count(row[0]) < core or items.count(row[2]) < core]
        if not short:
            break
        left.remove(short[0])
    try:
        made = build_histories(_interactions(rows), "leave_one_out", 5, core=core)
    except ValueError as error:
        assert ("data.core: no interaction is left" in str(error)) == (not left)
        assert not left or "is empty" in str(error)
        return
    assert made.interactions.equals(_interactions(sorted(left, key=lambda row: row[:2])))


def test_blocks_of_rows_do_not_change_the_table(monkeypatch):
    rows = _of("u1", "abcdefgh") + _of("u2", "hgfedcba")
    whole = build_histories(_interactions(rows), "leave_one_out", 10).table
    monkeypatch.setattr("digr.data.histories.BLOCK_VALUES", 14)
    assert BLOCK_VALUES > 14
    assert build_histories(_interactions(rows), "leave_one_out", 10).table.combine_chunks().equals(whole.combine_chunks())


def test_a_split_that_would_be_empty_is_an_error():
    with pytest.raises(ValueError, match=r"split train is empty \(rows: \{'train': 0, 'valid': 1, 'test': 1\}\)"):
        build_histories(_interactions(_of("u", "abc")), "leave_one_out", 10)


def test_a_temporal_split_without_times_is_an_error():
    with pytest.raises(ValueError, match="1 of 6 interactions have no timestamp"):
        build_histories(_interactions([*_of("u", "abcde", start=1), ("u", 9, "a", None)]), "temporal", 10)


def test_positions_that_contradict_the_times_are_an_error():
    with pytest.raises(ValueError, match=r"1 timestamps are earlier than that of the position before \(first: user 'u'\)"):
        build_histories(_interactions([("u", 0, "a", 5), ("u", 1, "b", 4), ("u", 2, "c", 6)]), "leave_one_out", 10)


def _official(rows: list[tuple[str, str, str]]) -> pa.Table:
    columns = [[r[0] for r in rows], [list(r[1]) for r in rows], [r[2] for r in rows]]
    return pa.table(columns, schema=pa.schema({"user_id": pa.string(), "history": pa.list_(pa.string()), "target": pa.string()}))


def test_official_rows_are_kept_and_get_their_times():
    rows = _interactions(_of("v", "abcd", start=10) + _of("u", "wxyz", start=20))
    splits = {
        "train": _official([("v", "a", "b"), ("u", "w", "x")]),
        "valid": _official([("u", "wx", "y"), ("v", "ab", "c")]),
        "test": _official([("v", "abc", "d"), ("u", "xy", "z")]),
    }
    made = build_histories(rows, "official", 2, splits)
    assert _short(made.table) == [
        ("train-000000001", "u", "w", "x"),
        ("valid-000000000", "u", "wx", "y"),
        ("test-000000001", "u", "xy", "z"),
        ("train-000000000", "v", "a", "b"),
        ("valid-000000001", "v", "ab", "c"),
        ("test-000000000", "v", "bc", "d"),
    ]
    assert [row["target_timestamp"].timestamp() for row in made.table.to_pylist()] == [21, 22, 23, 11, 12, 13]
    assert [row["last_timestamp"].timestamp() for row in made.table.to_pylist()] == [20, 21, 22, 10, 11, 12]


@pytest.mark.parametrize(
    ("split", "row"),
    [
        ("train", ("u", "ab", "d")),  # the target of the test row
        ("train", ("u", "b", "c")),  # a history that is the valid row's
        ("train", ("u", "", "b")),  # no history
        ("train", ("stranger", "a", "b")),  # no such user
        ("train", ("u", "da", "b")),  # history longer than what came before
    ],
)
def test_official_rows_out_of_order_are_an_error(split, row):
    splits = {"train": [("u", "a", "b")], "valid": [("u", "ab", "c")], "test": [("u", "abc", "d")]} | {split: [row]}
    with pytest.raises(ValueError, match=rf"splits/{split}\.parquet, row 0: user '{row[0]}'.* do not follow the interactions"):
        build_histories(_interactions(_of("u", "abcd")), "official", 10, {k: _official(v) for k, v in splits.items()})


def test_a_first_official_row_that_is_shorter_than_later_ones_is_given_what_they_hold():
    """Counting from the first row would miss the interactions that only a later row reaches back to."""
    splits = {
        "train": _official([("u", "c", "d"), ("u", "abcd", "e")]),
        "valid": _official([("u", "e", "f")]),
        "test": _official([("u", "f", "g")]),
    }
    short, cut = (build_histories(_interactions(_of("u", "abcdefg")), "official", size, splits) for size in (10, 2))
    assert _short(short.table)[:2] == [("train-000000000", "u", "abc", "d"), ("train-000000001", "u", "abcd", "e")]
    assert [row[2:] for row in _short(cut.table)[:3]] == [("ab", "c"), ("bc", "d"), ("cd", "e")]


def test_the_official_industrial_split_is_kept_row_for_row():
    folder = real_folder("amazon18_industrial_minionerec")
    made = prepare(folder, official=True, max_history=10)
    assert made.facts["split_rows"] == {"train": 36_259, "valid": 4_532, "test": 4_533}
    assert (len(made.items), made.facts["num_users"], len(made.interactions)) == (3_686, 7_694, 53_018)
    rows = {row["example_id"]: row for row in made.histories.to_pylist()}
    for split in SPLITS:
        for index, row in enumerate(pq.read_table(f"{folder}/splits/{split}.parquet").to_pylist()):
            found = rows[f"{split}-{index:09d}"]
            assert (found["user_id"], found["history"], found["target"]) == (row["user_id"], row["history"], row["target"])


def test_the_temporal_split_of_industrial_in_its_official_order_has_the_official_sizes():
    interactions = pq.read_table(f"{real_folder('amazon18_industrial_minionerec')}/interactions.parquet")
    everywhere_equal = pa.array([0] * len(interactions)).cast(pa.timestamp("ms", tz="UTC"))
    timed = conform("interactions", interactions.drop_columns("timestamp").append_column("timestamp", everywhere_equal), "here")
    made = build_histories(timed, "temporal", 10)
    assert made.facts["split_rows"] == {"train": 36_259, "valid": 4_532, "test": 4_533}
