"""The judge's yes has a probability, whatever form the model's answer has."""

import math

import pyarrow as pa
import pytest

from digr.config import build_config
from digr.config.interests import OpenAIJudge, VllmJudge
from digr.models.answers import Answer, AnswerForm
from digr.rewards.judge import (
    CHOICES,
    VERDICT_SCHEMA,
    judge_form,
    judge_messages,
    judge_requests,
    needs_image,
    read_verdict,
    yes_probability,
)


def test_every_token_that_begins_a_choice_counts_for_it():
    tokens = [("Yes", 0.5), (" y", 0.1), ("no", 0.2), ("N", 0.1), ("maybe", 0.1), ("", 0.3)]
    assert yes_probability([(token, math.log(share)) for token, share in tokens]) == pytest.approx(0.6 / 0.9)
    assert yes_probability([("perhaps", -0.1)]) is None


WORDS = AnswerForm("verdict", VERDICT_SCHEMA, CHOICES)
AS_JSON = AnswerForm("verdict", VERDICT_SCHEMA)


def test_the_judge_sees_the_text_and_the_interest_and_never_an_id():
    system, user = judge_messages("item", "trout fishing", "rod and reel", WORDS)
    assert "behind buying a product" in system["content"] and "one word" in system["content"]
    assert user["content"] == "Product:\nrod and reel\n\nInterest: trout fishing"
    assert judge_messages("user", "trout fishing", "rod", WORDS)[1]["content"].startswith("Products chosen, newest first:\nrod")
    assert "JSON" in judge_messages("item", "trout fishing", "rod", AS_JSON)[0]["content"]


def test_the_judge_sees_the_image_where_only_miners_with_an_image_found_the_interest():
    # it judged "fishing at dusk", read from a picture, by a title that says "rod"
    system, user = judge_messages("item", "trout fishing", "rod", WORDS, "data:x")
    assert [part["type"] for part in user["content"]] == ["image_url", "text"] and "image and text" in system["content"]
    miners = [["vision"], ["text", "vision"], ["vision", "other-vision"], ["vision"], ["recorded"]]
    owners = ["item", "item", "item", "user", "item"]
    interests = pa.table({"owner": owners, "miners": miners})
    assert needs_image(interests, ["vision", "other-vision"]).tolist() == [True, False, True, False, False]


def test_a_verdict_is_asked_for_again_where_anything_that_decides_it_changes():
    rows = pa.table({"owner": ["item"], "owner_id": ["a"], "interest": ["x y"]})
    judge = OpenAIJudge(base_url="http://x/v1", model="m").model_dump(mode="json")

    def digest(text="rod", image=None, **changes):
        return judge_requests(rows, [text], [image], judge | changes)["request_digest"][0].as_py()

    assert digest() == digest(base_url="http://y/v1", max_retries=1, usd_per_million_input_tokens=3.0)
    others = [digest("reel"), digest(image="x.png"), digest(model="n"), digest(max_tokens=99), digest(reasoning_effort="low")]
    assert len({digest(), *others}) == 6


def test_log_probabilities_decide_before_words():
    answer, probability = read_verdict(Answer("no", first_tokens=(("no", math.log(0.6)), ("yes", math.log(0.3)))))
    assert answer.status == "ok" and probability == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("content", "expected"),
    [("yes", 1.0), (" No.", 0.0), ('{"answer": "yes"}', 1.0), ('{"answer": "no"}', 0.0), ("YES!", 1.0)],
)
def test_without_log_probabilities_the_words_decide(content, expected):
    answer, probability = read_verdict(Answer(content))
    assert (answer.status, answer.response, probability) == ("ok", content, expected)


@pytest.mark.parametrize("content", ["", None, "perhaps", '{"answer": 3}', "[1]", '{"reply": "yes"}'])
def test_what_is_neither_yes_nor_no_is_unparsable(content):
    answer, probability = read_verdict(Answer(content, reason="stopped at max_tokens"))
    assert answer.status == "unparsable" and probability is None
    assert answer.reason.startswith("stopped at max_tokens; neither yes nor no")


def test_what_has_a_status_already_keeps_it():
    assert read_verdict(Answer("yes", "error", "late")) == (Answer("yes", "error", "late"), None)


def test_the_form_of_a_verdict_is_a_word_with_its_probability_or_json_where_an_endpoint_gives_none():
    common = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}
    assert judge_form(OpenAIJudge(**common)) == judge_form(VllmJudge(model="m")) == WORDS
    assert judge_form(OpenAIJudge(logprobs=False, **common)) == AS_JSON


def test_a_judge_takes_no_setting_that_it_would_ignore():
    # vLLM's judge took max_tokens and temperature, and wrote one token at temperature 0
    for setting in ("max_tokens", "temperature", "modality"):
        judge = {"kind": "vllm", "model": "m", setting: "image" if setting == "modality" else 1}
        with pytest.raises(ValueError, match=rf"labels\.judge\.vllm\.{setting}"):
            build_config({"run": {"dir": "x"}, "labels": {"labelers": ["judge"], "judge": judge}}, where="test")


def test_a_judge_without_a_model_is_an_error_of_the_config():
    with pytest.raises(ValueError, match=r"labels\.judge: missing although labels\.labelers has 'judge'"):
        build_config({"run": {"dir": "x"}, "labels": {"labelers": ["judge"]}}, where="test")
    with pytest.raises(ValueError, match=r"labels\.labelers: each once, found \['classifier', 'classifier'\]"):
        build_config({"run": {"dir": "x"}, "labels": {"labelers": ["classifier", "classifier"]}}, where="test")
