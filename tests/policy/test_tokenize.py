"""Prompts that are nothing but SIDs get their tokens by look-up; they are those of the tokenizer."""

import pytest
import torch
from tokenizers.pre_tokenizers import Whitespace

from digr.config.policy import PolicyConfig
from digr.policy.model import SidPolicy, build_policy
from tests.policy.toy import LEVEL_SIZES, toy_policy
from tests.tiny_models import make_text_model

TEXTS = [
    "<a_0><b_1><c_1>",
    "<a_1><b_1><c_0><a_1><b_0><c_0><a_0>",
    "",
    "<c_0>",
    "bought <a_1> and <b_0><c_1>",
    "<a_1> <b_0>",
    "<a_1><b_0>, then",
    "<a_999><b_0>",
    "<a_1<b_0>>",
    "a cedar fly rod",
]


@pytest.fixture(params=["scratch", "hf"])
def policy(request, tmp_path) -> SidPolicy:
    """The small GPT-2 and a random two-layer Qwen3 with its tokenizer."""
    if request.param == "scratch":
        return toy_policy()
    make_text_model(tmp_path / "base")
    return build_policy(PolicyConfig(backbone="hf", base=str(tmp_path / "base")), LEVEL_SIZES, 0, None)


def test_tokens_are_those_of_the_tokenizer_alone_and_in_a_batch(policy):
    texts = [text for text in TEXTS if policy.tokenizer(text)["input_ids"]]
    tokens, real = policy.tokenize(texts)
    assert tokens.dtype == torch.int64
    assert (tokens[~real] == policy.tokenizer.pad_token_id).all()
    for row, text in enumerate(texts):
        expected = policy.tokenizer(text)["input_ids"]
        assert tokens[row][real[row]].tolist() == expected
        assert policy.tokenize([text])[0].tolist() == [expected]


def test_only_texts_of_sids_alone_are_looked_up(policy):
    assert [policy._look_up(text) is not None for text in TEXTS] == [True] * 4 + [False] * 6


def test_a_tokenizer_that_takes_sid_tokens_apart_is_refused():
    policy = toy_policy()
    policy.tokenizer.backend_tokenizer.pre_tokenizer = Whitespace()
    with pytest.raises(ValueError, match="the tokenizer does not read <a_0> as one token"):
        SidPolicy(policy.lm, policy.tokenizer)
