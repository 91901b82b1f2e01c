"""Text tasks say of each item and history what a reader would, and leave out what has no text."""

import numpy as np
import pyarrow as pa
import pytest

from digr.config.policy import TasksConfig
from digr.data.ids import build_id_index
from digr.policy.examples import Sids
from digr.policy.tasks import (
    ItemTexts,
    codeword_texts,
    history_task_examples,
    item_task_examples,
    joined_interests,
    plain_text,
)
from digr.tables import conform

SIDS = Sids(build_id_index(pa.array(["p", "q", "r"])), ["<a_0><b_1>", "<a_1><b_0>", "<a_1><b_1>"])
TEXTS = ItemTexts(pa.array(["Rod", "Tent", None], pa.string()), pa.array(["trout; rivers", None, "cosy"], pa.string()))


def _pairs(table: pa.Table) -> list[tuple[str, str, str]]:
    return [(row["task"], row["prompt"], row["completion"]) for row in table.to_pylist()]


def test_item_tasks_tie_sids_titles_and_interests_both_ways():
    table = item_task_examples(pa.array(["p", "r"]), SIDS, TEXTS, TasksConfig())
    assert _pairs(table) == [
        ("title_to_sid", "Title: Rod\nItem: ", "<a_0><b_1>"),
        ("sid_to_title", "Item: <a_0><b_1>\nTitle:", " Rod\n"),
        ("interest_to_sid", "Interests: trout; rivers\nItem: ", "<a_0><b_1>"),
        ("interest_to_sid", "Interests: cosy\nItem: ", "<a_1><b_1>"),
        ("sid_to_interest", "Item: <a_0><b_1>\nInterests:", " trout; rivers\n"),
        ("sid_to_interest", "Item: <a_1><b_1>\nInterests:", " cosy\n"),
    ]
    assert table["example_id"].to_pylist()[:2] == ["title_to_sid/p", "sid_to_title/p"]
    assert set(table["split"].to_pylist()) == {"train"} and table["target"].to_pylist()[:2] == ["p", "p"]


def _histories(*rows: tuple[str, str, str]) -> pa.Table:
    columns = {"example_id": [f"e{row[0]}" for row in rows], "user_id": [row[0] for row in rows], "split": ["train"] * len(rows)}
    lists = pa.array([list(row[1]) for row in rows], pa.list_(pa.string()))
    return conform("histories", pa.table(columns | {"history": lists, "target": [row[2] for row in rows]}), "test")


def test_history_tasks_read_the_newest_items_and_the_users_interests():
    rows, interests = _histories(("u", "rpq", "p"), ("v", "p", "r")), pa.array(["camping", None], pa.string())
    assert _pairs(
        history_task_examples(rows, SIDS, TEXTS, interests, TasksConfig(), max_history=2, shown=pa.array([None, "trips"]))
    ) == [
        ("history_to_title", "<a_0><b_1><a_1><b_0>\nTitle:", " Rod\n"),
        ("titles_to_sid", "Titles:\nRod\nTent\nItem: ", "<a_0><b_1>"),
        ("titles_to_sid", "Titles:\nRod\nItem: ", "<a_1><b_1>"),
        ("user_interest_to_sid", "User interests: camping\nItem: ", "<a_0><b_1>"),
        ("interest_history_to_sid", "User interests: trips\n<a_0><b_1>", "<a_1><b_1>"),
    ]


def test_a_task_of_rate_zero_is_left_out():
    tasks = TasksConfig(title_to_sid=0, sid_to_title=0, interest_to_sid=0)
    assert set(item_task_examples(pa.array(["p"]), SIDS, TEXTS, tasks)["task"].to_pylist()) == {"sid_to_interest"}
    tasks = TasksConfig(history_to_title=0, titles_to_sid=0, user_interest_to_sid=0)
    none = pa.nulls(1, pa.string())
    assert len(history_task_examples(_histories(("u", "p", "q")), SIDS, TEXTS, none, tasks, max_history=2, shown=none)) == 0


def test_texts_lose_what_reads_like_a_sid_token_and_are_cut():
    texts = pa.array(["  A <a_1>\n kit ", "<b_22>", "long title", None], pa.string())
    assert plain_text(texts, 5).to_pylist() == ["A kit", None, "long", None]


def test_only_trusted_interests_of_the_asked_owners_are_read_strongest_first():
    rows = [
        ("item", "p", 0, "rivers", 0.7, 1),
        ("item", "p", 1, "trout", 0.9, 1),
        ("item", "p", 2, "vague", 0.2, 0),
        ("user", "p", 0, "other", 0.9, 1),
    ]
    labels = pa.table(
        dict(zip(["owner", "owner_id", "rank", "interest", "probability", "label"], zip(*rows, strict=True), strict=True))
    )
    assert joined_interests(labels, "item", pa.array(["q", "p"]), 50).to_pylist() == [None, "trout; rivers"]
    assert joined_interests(labels, "item", pa.array(["q", "p"]), 50, most=1).to_pylist() == [None, "trout"]
    assert joined_interests(labels.slice(0, 0), "item", pa.array(["q"]), 50).to_pylist() == [None]


def test_an_item_without_sid_is_named():
    with pytest.raises(ValueError, match="item 'z' has no semantic ID in item_sids"):
        item_task_examples(pa.array(["p", "z"]), SIDS, TEXTS, TasksConfig())


def test_a_code_is_told_by_the_phrases_of_its_items_that_other_codes_lack():
    codes = np.array([[0, 1], [0, 0], [1, 1], [1, -1]])
    phrases = pa.array([["trout", "outdoor"], ["trout", "rivers"], ["tents", "outdoor"], ["tents"]])
    assert codeword_texts(codes, phrases, (3, 2)) == [
        ["trout; rivers; outdoor", "tents; outdoor", ""],
        ["rivers; trout", "outdoor; tents; trout"],
    ]
    assert codeword_texts(codes, pa.array([[], [], [], []], pa.list_(pa.string())), (3, 2)) == [["", "", ""], ["", ""]]
