"""Every answer gets a status, whatever it looks like, and what can be recovered is."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digr.interests.ledger import finish_responses, raw_responses
from digr.interests.parsing import normalise_phrase, parse_response
from digr.tables import STATUSES

GOOD = json.dumps(
    {
        "reasoning": "An angler packs for Saturday.",
        "interests": [
            {"interest": "Quiet mornings on the lake", "confidence": 0.6},
            {"interest": "weekend trout fishing.", "confidence": 0.9},
        ],
    }
)
EXPECTED = [("weekend trout fishing", 0.9), ("quiet mornings on the lake", 0.6)]


def test_a_whole_answer_gives_normalised_interests_strongest_first():
    assert parse_response(GOOD) == ("ok", EXPECTED, None)


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{GOOD}\n```",
        f"Sure! Here you go [as asked]:\n{GOOD}\nLet me know {{if}} you need more.",
        json.dumps(json.loads(GOOD)["interests"]),
        GOOD.replace("An angler", 'An "angler"'),
        GOOD.replace("An angler", "An\n\x10angler"),
        f"<think>maybe {{}} or []</think>{GOOD}",
    ],
    ids=["fences", "prose around", "bare list", "broken quote in the reasoning", "control characters", "thinking"],
)
def test_wrappings_do_not_matter(text):
    assert parse_response(text)[:2] == ("ok", EXPECTED)


def test_a_cut_answer_keeps_its_whole_interests():
    cut = GOOD[: GOOD.index("0.9") + 1]
    parsed = parse_response(cut)
    assert parsed == ("truncated", [("quiet mornings on the lake", 0.6)], "the JSON stops after 1 whole interests")
    assert parse_response(GOOD[:30]).status == "truncated"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (None, "empty"),
        (" \n", "empty"),
        ('{"reasoning": "x", "interests": []}', "empty"),
        ('{"interests": [{"interest": "!!!", "confidence": 1}]}', "empty"),
        ("I'm sorry, but I can't help with that.", "refused"),
        ("Interests: fishing, hiking", "unparsable"),
        ('{"answer": 42}', "unparsable"),
        ('{"interests": "fishing"}', "unparsable"),
        ("[" * 100_000, "truncated"),
        ('{"interests": [{"interest": "a b", "confidence": ' + "9" * 5000 + "}]}", "unparsable"),
    ],
)
def test_failures_have_their_status(text, status):
    assert parse_response(text).status == status


def test_duplicates_keep_the_highest_confidence_and_confidences_are_clipped():
    entries = [
        ("Ice fishing", 0.2),
        ("ice  FISHING!", 7),
        ("flies", -1),
        ("camp cooking", "0.5"),
        ("map reading", True),
        ("knots", None),
    ]
    text = json.dumps({"interests": [{"interest": name, "confidence": value} for name, value in entries]})
    assert parse_response(text).interests == [
        ("ice fishing", 1.0),
        ("camp cooking", 0.5),
        ("flies", 0.0),
        ("map reading", None),
        ("knots", None),
    ]


def test_long_phrases_end_at_a_word():
    phrase = normalise_phrase("restoring old wooden boats " * 10)
    assert len(phrase) <= 80 and phrase.endswith("boats")


def _check(text):
    parsed = parse_response(text)
    assert parsed.status in STATUSES
    assert (parsed.reason is None) == (parsed.status == "ok")
    phrases = [phrase for phrase, _ in parsed.interests]
    assert len(set(phrases)) == len(phrases) and len(phrases) <= 20
    assert all(0 < len(phrase) <= 80 and phrase == normalise_phrase(phrase) for phrase in phrases)
    strengths = [confidence or 0.0 for _, confidence in parsed.interests]
    assert strengths == sorted(strengths, reverse=True) and all(0 <= strength <= 1 for strength in strengths)
    pa.array(phrases, pa.string())


SEEDS = (
    GOOD,
    f"```json\n{GOOD}\n```",
    f"<think>{{maybe}} [or] not</think> Sure! {GOOD} Anything else?",
    json.dumps(json.loads(GOOD)["interests"]),
    json.dumps(
        {
            "reasoning": "é ✓ \ud83c\udfa3",
            "interests": ["camp cooking", {"interest": "gr\u00fcne G\u00e4rten", "confidence": "0.4"}],
        }
    ),
    GOOD + GOOD,
    "I'm sorry, but I can't help with that.",
    "\n".join(f"{rank}. fishing for {rank} hours" for rank in range(9)),
)
BITS = (
    '"',
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\\",
    "\\u12",
    "\ud800",
    "\x00",
    "NaN",
    "-Infinity",
    "1e999",
    "null",
    "}}}}",
    "[[[[",
    " " * 50,
)


def _mangle(text, rng):
    letters = list(text)
    for _ in range(rng.integers(1, 8)):
        position, action = int(rng.integers(0, len(letters) + 1)), rng.integers(0, 5)
        if action == 0:
            letters = letters[:position]
        elif action == 1:
            del letters[position : position + int(rng.integers(1, 30))]
        elif action == 2:
            letters[position:position] = BITS[rng.integers(0, len(BITS))]
        elif action == 3:
            letters[position : position + 1] = chr(int(rng.integers(1, 0x11000)))
        else:
            letters += letters[position : position + int(rng.integers(1, 400))]
    return "".join(letters)


def test_each_of_ten_thousand_mangled_answers_becomes_a_ledger_row_with_a_status_and_clean_interests():
    rng = np.random.default_rng(0)
    texts = [_mangle(SEEDS[index % len(SEEDS)], rng) for index in range(10_000)]
    requests = {"owner": ["item"] * 10_000, "owner_id": [str(index) for index in range(10_000)]}
    requests |= {"request_digest": [f"{index:016x}" for index in range(10_000)]}
    rows = finish_responses(raw_responses(pa.table(requests), "m", "v", "text", response=texts))
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(rows["status"]).to_pylist()}
    assert sum(counts.values()) == 10_000 and set(counts) == set(STATUSES) - {"error"}
    assert min(counts.values()) > 50, counts
    for text in texts[:2000]:
        _check(text)


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_no_text_raises(text):
    _check(text)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_no_mangling_of_a_good_answer_raises(data):
    letters = list(GOOD)
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, len(letters) - 1))
        action = data.draw(st.sampled_from(["cut", "drop", "insert", "swap"]))
        if action == "cut":
            letters = letters[: position + 1]
        elif action == "drop":
            del letters[position : position + 3]
        elif action == "insert":
            letters.insert(position, data.draw(st.sampled_from(['"', "{", "}", "[", "\\", "\\ud800", "\x00", "ſ", "NaN"])))
        else:
            letters[position] = data.draw(st.characters())
        letters = letters or ["{"]
    _check("".join(letters))
