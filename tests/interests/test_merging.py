"""Several miners' answers become one ranked list per owner."""

import json

import numpy as np
import pyarrow as pa

from digr.interests.merging import latest_responses, merge_responses
from digr.tables import flat_interests

VECTORS = {"trout fishing": [1.0, 0.0], "fishing for trout": [0.95, 0.3122], "home baking": [0.0, 1.0]}


def _encode(texts):
    return np.array([VECTORS[text] for text in texts])


def _responses(*rows):
    return pa.table(
        {
            "owner": ["item"] * len(rows),
            "owner_id": [row[0] for row in rows],
            "miner": [row[1] for row in rows],
            "request_digest": [row[4] if len(row) > 4 else f"{row[0]}-{row[1]}" for row in rows],
            "response": [row[2] if isinstance(row[2], str | None) else _answer(row[2]) for row in rows],
            "status": [row[3] if len(row) > 3 else "ok" for row in rows],
            "modality": ["image" if row[1] == "sees" else "text" for row in rows],
        }
    )


def _answer(interests):
    return json.dumps({"interests": [{"interest": name, "confidence": value} for name, value in interests.items()]})


def _merge(table, encode=_encode, similarity=0.9, max_interests=5):
    ids = pa.array(["a", "b", "c"])
    merged = merge_responses(table, "item", ids, encode, similarity=similarity, max_interests=max_interests)
    assert merged["owner_id"].equals(pa.chunked_array([ids]))
    return flat_interests(merged).drop_columns("row").to_pylist()


def test_close_phrases_of_two_miners_are_one_interest_with_full_consensus():
    table = _responses(("a", "x", {"trout fishing": 0.9, "home baking": 0.8}), ("a", "y", {"fishing for trout": 0.5}))
    common = {"owner": "item", "owner_id": "a"}
    assert _merge(table) == [
        common | {"rank": 0, "interest": "trout fishing", "confidence": 0.7, "miners": ["x", "y"], "consensus": 1.0},
        common | {"rank": 1, "interest": "home baking", "confidence": 0.8, "miners": ["x"], "consensus": 0.5},
    ]


def test_what_a_miner_noted_of_the_image_alone_is_the_caption():
    # an interest that was read from an image was judged by a text that says nothing of it
    noted = json.dumps({"reasoning": "a man at a\n river", "interests": [{"interest": "trout fishing"}]})
    rows = [("a", "reads", noted), ("b", "reads", noted), ("b", "sees", noted), ("c", "sees", '["trout fishing"]')]
    merged = merge_responses(_responses(*rows), "item", pa.array(list("abc")), _encode, similarity=0.9, max_interests=5)
    assert merged["caption"].to_pylist() == [None, "a man at a river", None]


def test_phrases_of_one_miner_never_merge_and_need_no_encoder():
    def refuse(texts):
        raise AssertionError("one miner needs no encoder")

    rows = _merge(_responses(("a", "x", {"trout fishing": 0.9, "fishing for trout": 0.8})), encode=refuse)
    assert [row["interest"] for row in rows] == ["trout fishing", "fishing for trout"]
    assert [row["consensus"] for row in rows] == [1.0, 1.0]


def test_a_miner_that_failed_was_asked_all_the_same_and_owners_come_in_order():
    # consensus counted the miners that answered, so a phrase of one of two miners had full consensus where the other failed
    table = _responses(
        ("b", "x", {"home baking": 0.4}),
        ("b", "y", None, "error"),
        ("a", "x", '{"interests": [{"interest": "a b"}, {', "truncated"),
        ("c", "x", None, "refused"),
    )
    rows = _merge(table)
    assert [(row["owner_id"], row["interest"], row["confidence"], row["consensus"]) for row in rows] == [
        ("a", "a b", None, 1.0),
        ("b", "home baking", 0.4, 0.5),
    ]


def test_only_the_strongest_are_kept():
    rows = _merge(_responses(("a", "x", {"trout fishing": 0.1, "home baking": 0.2})), max_interests=1)
    assert [(row["rank"], row["interest"]) for row in rows] == [(0, "home baking")]


def test_a_retried_request_counts_once_and_ok_beats_failed():
    table = _responses(
        ("a", "x", "first", "ok", "d1"),
        ("a", "x", None, "error", "d1"),
        ("b", "x", "early", "ok", "d2"),
        ("b", "x", "late", "ok", "d2"),
    )
    assert latest_responses(table)["response"].to_pylist() == ["first", "late"]
