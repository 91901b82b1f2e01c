"""A cache of encoded prompts changes what is computed, never what comes out."""

import numpy as np
import pytest
import torch

from digr.config.policy import PolicyConfig
from digr.policy.decoding.contexts import ContextCache, encode
from digr.policy.decoding.search import recommend
from digr.policy.model import SidPolicy, build_policy
from digr.policy.vocabulary import history_prompt, sid_texts
from tests.policy.toy import LEVEL_SIZES, toy_policy, toy_trie
from tests.tiny_models import make_text_model

TRIE = toy_trie()
TEXTS = sid_texts(TRIE.codes.numpy())


@pytest.fixture(params=["scratch", "hf"])
def policy(request, tmp_path) -> SidPolicy:
    """The small GPT-2 and a random two-layer Qwen3."""
    if request.param == "scratch":
        return toy_policy().eval()
    make_text_model(tmp_path / "base")
    torch.manual_seed(0)
    return build_policy(PolicyConfig(backbone="hf", base=str(tmp_path / "base")), LEVEL_SIZES, 0, None).eval()


def _prompt(*items: int) -> str:
    return history_prompt([TEXTS[item] for item in items])


def _assert_same_lists(policy: SidPolicy, cache: ContextCache, prompts: list[str]) -> None:
    for found, expected in zip(
        recommend(policy, TRIE, prompts, 8, 8, cache=cache), recommend(policy, TRIE, prompts, 8, 8), strict=True
    ):
        assert found.item_ids == expected.item_ids
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


def test_known_grown_and_new_prompts_of_one_batch_give_the_lists_of_no_cache(policy):
    cache = ContextCache(policy, 10**8)
    _assert_same_lists(policy, cache, [_prompt(1, 2, 3), _prompt(4)])
    _assert_same_lists(policy, cache, [_prompt(4, 5), _prompt(1, 2, 3), _prompt(7, 8), _prompt(1, 2, 3, 9, 10, 11)])
    _assert_same_lists(policy, cache, [_prompt(4, 5), _prompt(7, 8)])
    _assert_same_lists(policy, cache, [_prompt(4), _prompt(7, 8, 9)])


def test_only_new_tokens_of_a_grown_history_are_encoded(tmp_path):
    make_text_model(tmp_path / "base")
    policy = build_policy(PolicyConfig(backbone="hf", base=str(tmp_path / "base")), LEVEL_SIZES, 0, None).eval()
    read = []
    policy.lm.get_input_embeddings().register_forward_hook(lambda module, inputs, output: read.append(inputs[0].shape[1]))
    cache = ContextCache(policy, 10**8)
    first, grown = _prompt(1, 2, 3), _prompt(1, 2, 3, 4)
    lengths = [policy.tokenize([prompt])[0].shape[1] for prompt in (first, grown)]
    for prompt in (first, grown, grown):
        encode(policy, [prompt], cache)
    assert read == [lengths[0], lengths[1] - lengths[0]], "and nothing at all for a prompt that is known"


def test_a_grown_prompt_takes_the_place_of_the_one_it_grew_from():
    policy = toy_policy().eval()
    cache = ContextCache(policy, 10**8)
    for prompt in (_prompt(1), _prompt(1, 2), _prompt(1, 2, 3)):
        encode(policy, [prompt], cache)
    assert len(cache) == 1
    tokens = policy.tokenize([_prompt(1, 2, 3)])[0][0].tolist()
    assert cache.find(tokens).tokens == tokens
    assert cache.num_bytes == cache.find(tokens).nbytes


def test_the_least_recently_used_prompts_make_room():
    policy = toy_policy().eval()
    prompts = [_prompt(item, item + 1) for item in range(4)]
    rows = [policy.tokenize([prompt])[0][0].tolist() for prompt in prompts]
    cache = ContextCache(policy, 10**8)
    encode(policy, prompts[:1], cache)
    size = cache.num_bytes
    cache = ContextCache(policy, 3 * size + size // 4)
    for prompt in (*prompts[:3], prompts[0], prompts[3]):
        encode(policy, [prompt], cache)
        assert cache.num_bytes <= cache.max_bytes
    assert [cache.find(row) is not None for row in rows] == [True, False, True, True]


def test_a_prompt_larger_than_the_cache_is_encoded_and_not_kept():
    policy = toy_policy().eval()
    cache = ContextCache(policy, 10)
    _assert_same_lists(policy, cache, [_prompt(1, 2), _prompt(3)])
    assert len(cache) == cache.num_bytes == 0


def test_a_cache_of_another_policy_is_refused():
    with pytest.raises(ValueError, match="holds prompts of another policy; make one cache for each policy"):
        recommend(toy_policy().eval(), TRIE, [_prompt(1)], 5, 5, cache=ContextCache(toy_policy(), 10**6))
