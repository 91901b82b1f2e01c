"""Every answer gets a status, whatever it looks like, and everything recoverable is recovered."""

import doctest
import json
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digr.interests import parsing
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
        GOOD.replace('"', "'").replace("An angler", "An angler's wife"),
        GOOD.replace("0.9}]", "0.9},],"),
        GOOD.replace('"interests"', '"Interests"').replace('"interest"', '"Phrase"').replace('"confidence"', "score"),
        json.dumps([{"name": name, "confidence": f"{share:.0%}"} for name, share in EXPECTED]),
        "Here they are:\n\n1. **Weekend trout fishing** (0.9): for anglers\n2. Quiet mornings on the lake - 60%\n\nEnjoy!",
        "* weekend trout fishing: 9/10\n* Quiet mornings on the lake: 6/10",
    ],
    ids=[
        "fences",
        "prose around",
        "bare list",
        "broken quote in the reasoning",
        "control characters",
        "thinking",
        "single quotes",
        "trailing commas",
        "other keys",
        "names and percent",
        "numbered lines",
        "bulleted lines",
    ],
)
def test_wrappings_do_not_matter(text):
    assert parse_response(text)[:2] == ("ok", EXPECTED)


DRAFT = GOOD.replace("Quiet mornings on the lake", "car racing")


@pytest.mark.parametrize("final", [GOOD, GOOD.replace("0.9}]", "0.9},]")], ids=["whole", "broken"])
@pytest.mark.parametrize(
    "before",
    [
        f"<think>{DRAFT}</think>",
        f"{DRAFT}</think>",
        f"<think>I may write <think> here. {DRAFT}</think>",
        f"{DRAFT}\nWait, that is wrong. ",
    ],
    ids=["closed", "opened by the prompt", "nested", "in prose"],
)
def test_the_answer_behind_the_reasoning_wins(before, final):
    """The first JSON of a text was taken, which is a reasoning model's draft."""
    assert parse_response(before + final)[:2] == ("ok", EXPECTED)


def test_nothing_is_taken_from_reasoning_that_never_ends():
    """The draft of a model that thought until its tokens were spent became its answer, with status "ok"."""
    assert parse_response(f"<think>{GOOD} but") == ("truncated", [], "the text stops inside the reasoning")
    assert parse_response(GOOD.replace("angler", "<think> angler"))[:2] == ("ok", EXPECTED)


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        GOOD.replace('"', "'"),
        GOOD.replace("angler", '5" angler'),
        json.dumps(json.loads(GOOD)["interests"]),
        json.dumps({"interests": ["Quiet mornings, on the lake", "weekend trout fishing"]}),
    ],
    ids=["JSON", "single quotes", "a quote too many", "bare list", "strings"],
)
def test_an_answer_cut_anywhere_is_truncated_and_names_only_whole_interests(answer):
    """json_repair closes what is open: a phrase that was cut in the middle would pass as an interest."""
    whole = {phrase for phrase, _ in parse_response(answer).interests}
    assert len(whole) == 2
    for end in range(1, len(answer)):
        parsed = parse_response(answer[:end])
        assert parsed.status == "truncated" and {phrase for phrase, _ in parsed.interests} <= whole, answer[:end]


def test_a_whole_list_stands_though_a_second_one_is_cut():
    assert parse_response(GOOD + DRAFT[:-30])[:2] == ("ok", EXPECTED)


def test_a_cut_answer_keeps_its_whole_interests():
    cut = GOOD[: GOOD.index("0.9") + 1]
    parsed = parse_response(cut)
    assert parsed == ("truncated", [("quiet mornings on the lake", 0.6)], "the JSON stops after 1 complete interests")
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
        ('{"interests": [{"interest": "a b", "confidence": ' + "9" * 5000 + "}]}", "ok"),
        ("<think>An angler? [1]", "truncated"),
        (f"<think>{GOOD}</think>\n", "empty"),
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


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([95, 90], [0.95, 0.9]),
        ([9, 6.5], [0.9, 0.65]),
        ([1, 0.5], [1.0, 0.5]),
        ([1.5, 1], [1.0, 1.0]),
        ([7, 0.5], [1.0, 0.5]),
        (["95%", 0.9], [0.95, 0.9]),
        (["8/10", "7/100"], [0.8, 0.07]),
        (["90", "40"], [0.9, 0.4]),
        (["high", "LOW"], [0.9, 0.3]),
        ([1000, 50], [1.0, 0.5]),
        ([float("inf"), "sure"], [None, None]),
    ],
)
def test_confidences_of_one_answer_share_a_scale(values, expected):
    """ "95%" was no confidence, and 90 and 60 of 100 were both 1.0."""
    entries = [{"interest": f"camp cooking {letter}", "confidence": value} for letter, value in zip("ab", values, strict=True)]
    assert [confidence for _, confidence in parse_response(json.dumps({"interests": entries})).interests] == expected


def test_steps_and_sentences_in_lines_are_no_interests():
    steps = "1. look at the product\n2. name interests\n\nInterests:\n- camp cooking\n- ice fishing\n"
    assert parse_response(steps).interests == [("camp cooking", None), ("ice fishing", None)]
    long = "- this product is for people who like to cook for their friends outdoors\n" * 2
    assert parse_response(long).status == "unparsable"


@pytest.mark.parametrize(
    "unit",
    ["[", "{", "[{", "{'", "\"'", "(", "{,", "[1,{,nul", "[// x\n{", '{"a":', "a ", '{"interest": "x', "1. a b\n", "</think>"],
)
@pytest.mark.parametrize("start", ["", '{"interests": [', '"interests": [{"name": "'], ids=["bare", "list", "entry"])
def test_a_megabyte_of_anything_takes_bounded_time(start, unit):
    """json_repair alone needs over a minute for 100,000 opening brackets."""
    text = start + unit * (1_000_000 // len(unit))
    began = time.process_time()
    _check(text)
    assert time.process_time() - began < 10


def test_the_recorded_answers_read_as_plain_json_does():
    recorded = pq.read_table("configs/industrial_interests/responses.parquet", columns=["response"])
    for text in recorded["response"].to_pylist():
        entries = json.loads(text)["interests"]
        best = {}
        for entry in entries:
            phrase = normalise_phrase(entry["interest"])
            best[phrase] = max(entry["confidence"], best.get(phrase, 0.0))
        assert parse_response(text) == ("ok", sorted(best.items(), key=lambda pair: -pair[1]), None)


def test_examples_in_docstrings_hold():
    assert doctest.testmod(parsing).failed == 0


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
    "Interests: fishing, hiking",
    f"<think>{GOOD}</think>{GOOD.replace(chr(34), chr(39))}",
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
@settings(max_examples=200)
def test_no_text_raises(text):
    _check(text)


@given(st.data())
@settings(max_examples=100)
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
