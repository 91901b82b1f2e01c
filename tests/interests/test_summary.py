"""What each miner was worth is counted exactly, in parts as well as at once."""

import pyarrow as pa
import pytest

from digr.interests.summary import add_outcomes, count_outcomes, found_without, miner_table

ROWS = [
    ("x", "ok", None, 10, 5, 0.25),
    ("x", "ok", "broken image: gone", 10, 5, 0.25),
    ("x", "error", "timeout", 0, 0, 0.0),
    ("y", "ok", None, 1, 1, 0.0),
    ("y", "truncated", "broken image: x; stopped at max_tokens", 1, 1, 0.0),
]
NAMES = ("miner", "status", "reason", "input_tokens", "output_tokens", "cost_usd")
RESPONSES = pa.table(dict(zip(NAMES, map(list, zip(*ROWS, strict=True)), strict=True)))
MINERS = [["x"], ["x", "y"], ["x", "y"], [], ["y"], ["x"]]
INTERESTS = pa.table({"miners": pa.array(MINERS, pa.list_(pa.string()))})


def _table(outcomes, miners=("x", "y", "z")):
    return miner_table(miners, outcomes, INTERESTS.to_batches(max_chunksize=2))


def test_each_miner_has_its_requests_failures_cost_yield_and_agreement():
    found = _table(count_outcomes(RESPONSES))
    assert found["x"] == {
        "requests": 3,
        "ok": 2,
        "failed": 1,
        "broken_images": 1,
        "input_tokens": 20,
        "output_tokens": 10,
        "cost_usd": pytest.approx(0.5),
        "interests": 4,
        "interests_per_request": round(4 / 3, 4),
        "agreement_rate": 0.5,
    }
    assert (found["y"]["failed"], found["y"]["broken_images"], found["y"]["agreement_rate"]) == (1, 1, round(2 / 3, 4))
    assert (found["z"]["requests"], found["z"]["interests_per_request"], found["z"]["agreement_rate"]) == (0, 0.0, None)


def test_parts_add_up_to_the_whole():
    parts = [count_outcomes(RESPONSES.slice(start, 2)) for start in (0, 2, 4)]
    assert _table(add_outcomes(parts)) == _table(count_outcomes(RESPONSES))


def test_a_miner_alone_can_agree_with_nobody():
    alone = miner_table(["x"], count_outcomes(RESPONSES.slice(0, 3)), INTERESTS.slice(0, 1).to_batches())
    assert alone["x"]["agreement_rate"] is None


def test_an_interest_stays_while_some_miner_that_is_not_left_out_found_it():
    assert found_without(INTERESTS["miners"], ["x"]).tolist() == [False, True, True, False, True, False]
    assert found_without(INTERESTS["miners"], ["x", "y"]).tolist() == [False] * 6
    assert found_without(INTERESTS["miners"].slice(1, 2), []).tolist() == [True, True]
