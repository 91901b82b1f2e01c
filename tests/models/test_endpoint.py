"""An endpoint may be busy, broken or odd; every request still gets its answer, but refusing them all stops the job at once."""

import asyncio
import json

import pytest

from digr.config.interests import OpenAIJudge, OpenAIMiner
from digr.interests.prompts import RESPONSE_SCHEMA, chat_messages
from digr.models.answers import AnswerForm
from digr.models.endpoint import Endpoint, api_key, check_keys, request_fields
from tests.models.endpoint_server import ANSWER, LIMITS, serve_endpoint

FORM = AnswerForm("interests", RESPONSE_SCHEMA)
WORDS = AnswerForm("verdict", {}, ("yes", "no"))


def _miner(server, **changes):
    return OpenAIMiner(**{"name": "m", "base_url": server.url, "model": "x", "max_retries": 1} | changes)


def _ask(miner, *batches):
    """Ask batches one after another with one client."""

    async def ask():
        endpoint = Endpoint(miner, "key", FORM)
        return [await asyncio.gather(*(endpoint.ask(chat_messages("item", "text", word)) for word in words)) for words in batches]

    answers = asyncio.run(ask())
    return answers[0] if len(batches) == 1 else answers


def test_each_request_gets_an_answer_in_order_whatever_the_endpoint_does():
    words = ["fine", "busy", "broken", "garbage", "cut", "odd", "half", "refuse"]
    with serve_endpoint() as server:
        answers = _ask(_miner(server), words)
    found = dict(zip(words, answers, strict=True))
    assert found["fine"] == found["busy"] == (ANSWER, None, None, 100, 10, ())
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


def test_an_answer_that_takes_too_long_is_an_error():
    with serve_endpoint() as server:
        (answer,) = _ask(_miner(server, max_retries=0, timeout_seconds=0.5), ["slow"])
    assert answer.status == "error" and answer.reason.startswith("APITimeoutError")


def test_a_busy_endpoint_is_asked_again_after_the_time_it_names():
    with serve_endpoint() as server:
        (answer,) = _ask(_miner(server), ["later"])
    (_, first, _), (_, second, _) = server.times
    assert answer.response == ANSWER and second - first >= 0.9


def test_requests_are_spread_over_the_minute_retries_and_later_batches_too():
    with serve_endpoint() as server:
        answers = _ask(_miner(server, requests_per_minute=1500), ["fine", "busy", "well"], ["good"])
    arrivals = sorted(arrival for _, arrival, _ in server.times)
    assert [answer.response for batch in answers for answer in batch] == [ANSWER] * 4 and len(arrivals) == 5
    # 40 ms apart; a thread of the server may notice a request a little late
    assert arrivals[-1] - arrivals[0] >= 4 * 0.04 - 0.02


def test_a_request_has_what_the_config_sets_and_nothing_else():
    # max_tokens and temperature 0 were in every request, which current frontier models refuse
    common = {"base_url": "http://x/v1", "model": "x"}
    plain = request_fields(OpenAIMiner(name="m", json_schema=False, **common), FORM)
    assert plain == {"model": "x", "max_tokens": 512}
    changes = {
        "token_field": "max_completion_tokens",
        "temperature": 0.0,
        "reasoning_effort": "low",
        "extra_body": {"top_p": 0.9},
    }
    full = request_fields(OpenAIMiner(name="m", json_schema=False, **common, **changes), FORM)
    sampling = {"temperature": 0.0, "reasoning_effort": "low", "extra_body": {"top_p": 0.9}}
    assert full == {"model": "x", "max_completion_tokens": 512} | sampling
    schema = request_fields(OpenAIMiner(name="m", **common), FORM)["response_format"]["json_schema"]
    assert schema == {"name": "interests", "schema": RESPONSE_SCHEMA, "strict": True}
    bare = request_fields(OpenAIMiner(name="m", plain_schema=True, **common), FORM)["response_format"]["json_schema"]["schema"]
    assert not any(keyword in json.dumps(bare) for keyword in LIMITS) and bare["required"] == RESPONSE_SCHEMA["required"]
    assert set(bare["properties"]["interests"]["items"]["properties"]) == {"interest", "confidence"}
    asked = request_fields(OpenAIJudge(**common), WORDS)
    assert asked == {"model": "x", "max_tokens": 16, "logprobs": True, "top_logprobs": 20}


def test_the_fields_of_the_config_reach_the_endpoint():
    changes = {
        "token_field": "max_completion_tokens",
        "temperature": 1.0,
        "reasoning_effort": "low",
        "extra_body": {"top_p": 0.9},
    }
    with serve_endpoint("max_tokens", "temperature", "limits") as server:
        (answer,) = _ask(_miner(server, plain_schema=True, **changes), ["fine"])
    body = server.bodies[0]
    assert answer.response == ANSWER and {"messages", "response_format"} < set(body)
    del body["messages"], body["response_format"]
    expected = {"model": "x", "max_completion_tokens": 512, "temperature": 1.0, "reasoning_effort": "low", "top_p": 0.9}
    assert body == expected


REFUSALS = {
    "max_tokens": ({}, r'set interests\.miners\.m\.token_field = "max_completion_tokens"'),
    "temperature": ({"temperature": 0.0}, r"set interests\.miners\.m\.temperature: remove it"),
    "limits": ({}, r"set interests\.miners\.m\.plain_schema = true"),
    "401": ({}, r"Incorrect API key provided; check interests\.miners\.m\.base_url, model and the key in OPENAI_API_KEY"),
    "403": ({}, "not allowed to use this model; check"),
    "404": ({}, "The model `x` does not exist; check"),
}


@pytest.mark.parametrize("refuses", REFUSALS)
def test_what_an_endpoint_never_takes_stops_the_job_after_one_request_and_names_the_field_to_set(refuses):
    # the whole catalogue was sent and ended as rows of status error, in a stage that was built
    changes, message = REFUSALS[refuses]
    with serve_endpoint(refuses) as server, pytest.raises(ValueError, match=message):
        _ask(_miner(server, **changes), ["fine"] * 20)
    assert len(server.bodies) == 1


def test_an_endpoint_that_refuses_everything_for_no_named_reason_is_sent_three_requests():
    with serve_endpoint("400") as server, pytest.raises(ValueError, match="failed each of the first 3 requests: BadRequestError"):
        _ask(_miner(server), ["fine"] * 20)
    assert len(server.bodies) == 3


def test_an_endpoint_that_answered_in_an_earlier_run_is_asked_all_the_rest_although_its_first_fail():
    # what is left of a run may be just the prompts that fail; they are counted by max_failed_rate
    with serve_endpoint() as server:

        async def ask():
            endpoint = Endpoint(_miner(server), "key", FORM, has_answered=True)
            return await asyncio.gather(*(endpoint.ask(chat_messages("item", "text", "bad")) for _ in range(9)))

        answers = asyncio.run(ask())
    assert [answer.status for answer in answers] == ["error"] * 9 and len(server.bodies) == 9


def test_one_prompt_that_is_refused_first_stops_nothing_and_requests_go_one_by_one_until_one_is_answered():
    with serve_endpoint() as server:
        answers = _ask(_miner(server, concurrency=8), ["bad", "bad", *["fine"] * 6])
    assert [answer.status for answer in answers] == ["error"] * 2 + [None] * 6
    assert "maximum context length" in answers[0].reason
    (_, _, first_end), (_, second, second_end), (_, third, third_end), *rest = sorted(server.times, key=lambda one: one[1])
    assert first_end <= second and second_end <= third and all(arrival >= third_end - 0.05 for _, arrival, _ in rest)


def test_a_slow_answer_holds_back_nothing_but_itself():
    with serve_endpoint() as server:

        async def ask():
            endpoint = Endpoint(_miner(server, concurrency=2), "key", FORM)
            waiting = [asyncio.create_task(endpoint.ask(chat_messages("item", "text", word))) for word in ["fine", "wait"]]
            others = await asyncio.gather(*(endpoint.ask(chat_messages("item", "text", "fine")) for _ in range(20)))
            assert not waiting[1].done()
            server.release.set()
            return [*others, await waiting[1]]

        answers = asyncio.run(ask())
    assert [answer.response for answer in answers] == [ANSWER] * 21 and server.most_at_once == 2


def test_a_missing_key_names_the_variable(monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    miner = OpenAIMiner(name="m", base_url="http://127.0.0.1:1/v1", model="x", api_key_env="SOME_KEY")
    with pytest.raises(ValueError, match=r"interests\.miners\.m: environment variable SOME_KEY is empty"):
        api_key(miner)
    with pytest.raises(ValueError, match=r"labels\.judge: environment variable SOME_KEY is empty"):
        check_keys([OpenAIJudge(base_url="http://127.0.0.1:1/v1", model="x", api_key_env="SOME_KEY")])
    check_keys([None, "no endpoint"])
