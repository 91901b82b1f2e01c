"""An endpoint may be busy, broken or odd; every request still gets its answer."""

import pytest

from digr.config.interests import OpenAIMiner
from digr.interests.prompts import RESPONSE_SCHEMA, chat_messages
from digr.models.endpoint import Pace, api_key, ask_endpoint, read_completion
from tests.models.endpoint_server import ANSWER, serve_endpoint

SCHEMA = {"type": "json_schema", "json_schema": {"name": "interests", "schema": RESPONSE_SCHEMA, "strict": True}}


def _ask(miner, words, pace=None):
    chats = [chat_messages("item", "text", word) for word in words]
    return ask_endpoint(miner, "key", chats, pace or Pace(0), fields={"response_format": SCHEMA})


def test_each_request_gets_an_answer_in_order_whatever_the_endpoint_does():
    words = ["fine", "busy", "broken", "garbage", "cut", "odd", "half", "refuse"]
    with serve_endpoint() as server:
        miner = OpenAIMiner(name="m", base_url=server.url, model="x", max_retries=1)
        answers = _ask(miner, words)
    found = dict(zip(words, answers, strict=True))
    assert found["fine"] == found["busy"] == (ANSWER, None, None, 100, 10)
    assert {word: found[word].status for word in words} == {
        "fine": None,
        "busy": None,
        "broken": "error",
        "garbage": "error",
        "cut": "error",
        "odd": "error",
        "half": None,
        "refuse": "refused",
    }
    assert found["half"].reason == "stopped at max_tokens"
    assert found["broken"].reason.startswith("InternalServerError")
    retried = {word: sum(count for prompt, count in server.seen.items() if word in prompt) for word in words}
    assert retried == dict.fromkeys(words, 1) | {"busy": 2, "broken": 2, "cut": 2}
    asked = server.bodies[0]
    assert asked["response_format"]["json_schema"]["schema"] == RESPONSE_SCHEMA and asked["temperature"] == 0.0


def test_an_answer_that_takes_too_long_is_an_error():
    with serve_endpoint() as server:
        miner = OpenAIMiner(name="m", base_url=server.url, model="x", max_retries=0, timeout_seconds=0.5)
        (answer,) = _ask(miner, ["slow"])
    assert answer.status == "error" and answer.reason.startswith("APITimeoutError")


def test_a_busy_endpoint_is_asked_again_after_the_time_it_names():
    with serve_endpoint() as server:
        miner = OpenAIMiner(name="m", base_url=server.url, model="x", max_retries=1)
        (answer,) = _ask(miner, ["later"])
    (_, first, _), (_, second, _) = server.times
    assert answer.response == ANSWER and second - first >= 0.9


def test_requests_are_spread_over_the_minute_retries_and_later_batches_too():
    with serve_endpoint() as server:
        miner = OpenAIMiner(name="m", base_url=server.url, model="x", max_retries=1, concurrency=8)
        pace = Pace(1500)
        answers = _ask(miner, ["fine", "busy", "well"], pace) + _ask(miner, ["good"], pace)
    arrivals = sorted(arrival for _, arrival, _ in server.times)
    assert [answer.response for answer in answers] == [ANSWER] * 4 and len(arrivals) == 5
    # 40 ms apart; a thread of the server may notice a request a little late
    assert arrivals[-1] - arrivals[0] >= 4 * 0.04 - 0.02


NO_COMPLETIONS = [None, [], {"choices": [None]}, {"choices": [{"message": {"content": 3}}]}, {"choices": [{"message": 1}]}]


@pytest.mark.parametrize("body", NO_COMPLETIONS)
def test_what_is_no_completion_is_an_error(body):
    assert read_completion(body).status == "error"


def test_a_missing_key_names_the_variable(monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(ValueError, match="miner m: environment variable SOME_KEY is empty"):
        api_key(OpenAIMiner(name="m", base_url="http://127.0.0.1:1/v1", model="x", api_key_env="SOME_KEY"))
