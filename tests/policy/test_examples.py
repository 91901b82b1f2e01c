"""Sequences cover every interaction once, and say which item has no semantic ID."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digr.data.ids import build_id_index
from digr.policy.examples import Sids, cut_windows, policy_examples, prompt_examples, sequence_examples
from digr.tables import conform

ITEMS = [chr(ord("a") + index) for index in range(26)]
SIDS = Sids(build_id_index(pa.array(ITEMS)), [f"<{item}>" for item in ITEMS])


def _histories(*rows: tuple[str, str, str, str]) -> pa.Table:
    """Rows of (user, split, history, target), one letter per item."""
    table = {
        "example_id": [f"e{index}" for index in range(len(rows))],
        "user_id": [row[0] for row in rows],
        "split": [row[1] for row in rows],
        "history": pa.array([list(row[2]) for row in rows], pa.list_(pa.string())),
        "target": [row[3] for row in rows],
    }
    return conform("histories", pa.table(table), "test")


def _prefix_rows(user: str, sequence: str, max_history: int) -> list[tuple[str, str, str, str]]:
    return [(user, "train", sequence[max(0, at - max_history) : at], sequence[at]) for at in range(1, len(sequence))]


def _pairs(table: pa.Table) -> list[tuple[str, str]]:
    plain = [(row["prompt"], row["completion"]) for row in table.to_pylist()]
    return [(prompt.replace("><", "").strip("<>"), completion.replace("><", "").strip("<>")) for prompt, completion in plain]


def test_a_users_prefix_rows_become_one_sequence_whose_items_but_the_first_are_targets():
    table = policy_examples(_histories(*_prefix_rows("u", "abcd", 10), *_prefix_rows("v", "xy", 10)), SIDS, 10)
    assert table.to_pydict() == {
        "example_id": ["e2", "e3"],
        "user_id": ["u", "v"],
        "task": ["sequence", "sequence"],
        "split": ["train", "train"],
        "prompt": ["<a>", "<x>"],
        "completion": ["<b><c><d>", "<y>"],
        "target": ["d", "y"],
    }


def test_the_single_train_row_of_leave_one_out_data_makes_its_history_targets_too():
    assert _pairs(policy_examples(_histories(("u", "train", "abcde", "f")), SIDS, 10)) == [("a", "bcdef")]


def test_a_long_sequence_becomes_windows_with_half_of_each_later_one_as_prompt():
    table = sequence_examples(_histories(*_prefix_rows("u", "abcdefghijk", 5)), SIDS, 5)
    assert _pairs(table) == [("a", "bcdef"), ("def", "ghi"), ("fghi", "jk")]
    assert table["example_id"].to_pylist() == ["e4", "e7", "e9"]


def test_train_rows_out_of_order_are_an_error():
    rows = [("u", "train", "ab", "c"), ("u", "train", "xyz", "q")]
    with pytest.raises(ValueError, match=r"1 train rows do not continue the row before \(first: user 'u'\)"):
        sequence_examples(_histories(*rows), SIDS, 10)


def test_validation_rows_keep_their_history_as_prompt_and_test_rows_are_left_out():
    rows = [("u", "train", "a", "b"), ("u", "valid", "abcd", "e"), ("u", "test", "abcde", "f")]
    table = policy_examples(_histories(*rows), SIDS, 3)
    assert _pairs(table) == [("a", "b"), ("bcd", "e")]
    assert table["split"].to_pylist() == ["train", "valid"]


def test_each_row_becomes_a_prompt_of_its_own_split():
    table = prompt_examples(_histories(("u", "train", "abc", "d"), ("u", "valid", "abcd", "e"), ("u", "test", "b", "f")), SIDS, 3)
    assert _pairs(table) == [("abc", "d"), ("bcd", "e"), ("b", "f")]
    assert table["split"].to_pylist() == ["train", "valid", "test"]


@settings(deadline=None)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=6), st.integers(1, 8))
def test_every_interaction_but_a_users_first_is_a_target_exactly_once(lengths, max_history):
    rng = np.random.default_rng(len(lengths))
    sequences = ["".join(rng.choice(ITEMS, length)) for length in lengths]
    rows = [row for user, sequence in enumerate(sequences) for row in _prefix_rows(f"u{user}", sequence, max_history)]
    table = sequence_examples(_histories(*rows), SIDS, max_history)
    targets = dict.fromkeys(range(len(sequences)), "")
    for user, (prompt, completion) in zip(table["user_id"].to_pylist(), _pairs(table), strict=True):
        assert len(prompt) >= 1 and len(prompt) + len(completion) <= max_history + 1
        before = sequences[int(user[1:])][: 1 + len(targets[int(user[1:])])]
        assert before.endswith(prompt)
        targets[int(user[1:])] += completion
    assert [targets[user] for user in range(len(sequences))] == [sequence[1:] for sequence in sequences]
    assert len(set(table["example_id"].to_pylist())) == len(table)


@settings(deadline=None)
@given(st.integers(2, 60), st.integers(2, 12))
def test_later_windows_are_at_least_half_prompt(length, window):
    windows = cut_windows(np.array([length]), window)
    assert ((windows.first - windows.begin)[1:] >= window / 2).all()
    assert windows.first[1:].tolist() == windows.end[:-1].tolist() and windows.end[-1] == length


def test_an_item_without_sid_is_named_with_its_example():
    with pytest.raises(ValueError, match="item 'é' of example e1 has no semantic ID in item_sids"):
        policy_examples(_histories(("u", "train", "a", "b"), ("v", "train", "aé", "b")), SIDS, 10)
    with pytest.raises(ValueError, match="item 'ö' of example e0"):
        policy_examples(_histories(("u", "valid", "a", "ö")), SIDS, 10)


def test_an_empty_history_is_named():
    with pytest.raises(ValueError, match="example e1 has an empty history"):
        policy_examples(_histories(("u", "train", "a", "b"), ("v", "train", "", "b")), SIDS, 10)


def test_parts_without_train_or_validation_rows_give_empty_tables():
    assert len(policy_examples(_histories(("u", "test", "a", "b")), SIDS, 10)) == 0
