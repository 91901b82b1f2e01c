"""A completion is read whatever server wrote it."""

import math

import pytest

from digr.models.answers import Answer, read_completion

NO_COMPLETIONS = [None, [], {"choices": [None]}, {"choices": [{"message": {"content": 3}}]}, {"choices": [{"message": 1}]}]


@pytest.mark.parametrize("body", NO_COMPLETIONS)
def test_what_is_no_completion_is_an_error(body):
    assert read_completion(body).status == "error"


def _read(message, **choice):
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    return read_completion({"choices": [{"message": message, "finish_reason": "stop"} | choice], "usage": usage})


PARTS = [{"type": "text", "text": "a "}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "b"}]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "plain"}, "plain"),
        # a list of parts was an error of its form, although the protocol allows it
        ({"content": PARTS}, "a b"),
        ({"content": ["a ", "b"]}, "a b"),
        # a server that splits off reasoning takes an answer without a closing tag for reasoning; it came out empty
        ({"content": None, "reasoning_content": "{}"}, "{}"),
        ({"content": "", "reasoning": "{}"}, "{}"),
        ({"content": "the answer", "reasoning": "thoughts"}, "the answer"),
        ({"content": None}, None),
        ({"content": ""}, ""),
    ],
)
def test_the_text_of_an_answer_is_found_where_servers_put_it(message, text):
    assert _read(message) == Answer(text, None, None, 7, 2)


def test_a_cut_a_filtered_and_a_refused_answer_say_so():
    assert _read({"content": "x"}, finish_reason="length").reason == "stopped at max_tokens"
    assert _read({"content": "x"}, finish_reason="content_filter")[:3] == ("x", "refused", "content filter")
    assert _read({"content": None, "refusal": "no"})[:3] == (None, "refused", "no")


def test_the_first_token_comes_with_its_probabilities_where_the_server_gives_them():
    top = [{"token": "yes", "logprob": math.log(0.7)}, {"token": "no", "logprob": math.log(0.3)}]
    assert _read({"content": "yes"}, logprobs={"content": [top[0] | {"top_logprobs": top}]}).first_tokens == (
        ("yes", math.log(0.7)),
        ("no", math.log(0.3)),
    )
    for none in (None, {}, {"content": []}, {"content": [{}]}):
        assert _read({"content": "yes"}, logprobs=none).first_tokens == ()
