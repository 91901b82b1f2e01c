"""The judge's yes has a probability, whatever form the answer of its model has."""

import math

import pytest

from digr.config import build_config
from digr.config.interests import OpenAIJudge
from digr.rewards.judge import VERDICT_SCHEMA, endpoint_fields, judge_messages, read_verdict, yes_probability


def test_every_token_that_begins_a_choice_counts_for_it():
    tokens = [("Yes", 0.5), (" y", 0.1), ("no", 0.2), ("N", 0.1), ("maybe", 0.1), ("", 0.3)]
    assert yes_probability([(token, math.log(share)) for token, share in tokens]) == pytest.approx(0.6 / 0.9)
    assert yes_probability([("perhaps", -0.1)]) is None


def test_the_judge_sees_the_text_and_the_interest_and_never_an_id():
    system, user = judge_messages("item", "trout fishing", "rod and reel")
    assert "behind buying a product" in system["content"]
    assert user["content"] == "Product:\nrod and reel\n\nInterest: trout fishing"
    assert judge_messages("user", "trout fishing", "rod")[1]["content"].startswith("Products chosen, newest first:\nrod")


def _body(content, logprobs=None):
    return {"choices": [{"message": {"content": content}, "finish_reason": "stop", "logprobs": logprobs}]}


def test_log_probabilities_decide_before_words():
    first = {"token": "no", "logprob": math.log(0.6), "top_logprobs": [{"token": "no", "logprob": math.log(0.6)}]}
    first["top_logprobs"].append({"token": "yes", "logprob": math.log(0.3)})
    answer = read_verdict(_body("no", {"content": [first]}))
    assert float(answer.response) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("content", "probability"),
    [("yes", 1.0), (" No.", 0.0), ('{"answer": "yes"}', 1.0), ('{"answer": "no"}', 0.0), ("YES!", 1.0)],
)
def test_without_log_probabilities_the_words_decide(content, probability):
    answer = read_verdict(_body(content))
    assert answer.status is None
    assert float(answer.response) == probability


@pytest.mark.parametrize("content", ["", "perhaps", '{"answer": 3}', "[1]", '{"reply": "yes"}'])
def test_what_is_neither_yes_nor_no_is_unparsable(content):
    answer = read_verdict(_body(content))
    assert answer.status == "unparsable"
    assert answer.reason.startswith("neither yes nor no")


def test_what_is_no_completion_is_an_error():
    assert read_verdict({"choices": []}).status == "error"


def test_an_endpoint_is_asked_for_log_probabilities_or_for_json():
    common = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}
    assert endpoint_fields(OpenAIJudge(**common)) == {"logprobs": True, "top_logprobs": 20}
    asked = endpoint_fields(OpenAIJudge(logprobs=False, **common))
    assert asked["response_format"]["json_schema"]["schema"] == VERDICT_SCHEMA
    assert endpoint_fields(OpenAIJudge(logprobs=False, json_schema=False, **common)) == {}


def test_a_judge_without_a_model_is_an_error_of_the_config():
    with pytest.raises(ValueError, match=r"labels\.judge: missing although labels\.labelers has 'judge'"):
        build_config({"run": {"dir": "x"}, "labels": {"labelers": ["judge"]}}, where="test")
    with pytest.raises(ValueError, match=r"labels\.labelers: each once, found \['classifier', 'classifier'\]"):
        build_config({"run": {"dir": "x"}, "labels": {"labelers": ["classifier", "classifier"]}}, where="test")
