"""A prompt that is too long loses its oldest items, and is the same prompt in training, decoding and serving."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from digr.config.policy import PolicyConfig, SftConfig
from digr.policy.decoding.search import recommend
from digr.policy.model import SidPolicy, build_policy, build_scratch_policy, load_policy
from digr.policy.prompts import items_that_fit, read_prompts, split_prompt
from digr.policy.training.batches import Texts, make_batch, pack_sequences
from digr.policy.training.engine import PlainEngine, make_optimizer
from digr.policy.training.sft import train_sft
from digr.policy.training.validation import Decoding, ValidExamples
from digr.policy.vocabulary import history_prompt, sid_texts
from tests.policy.toy import LEVEL_SIZES, NUM_ITEMS, toy_trie
from tests.tiny_models import make_text_model

MAX_TOKENS = 32
TITLES = [f"cedar fly rod number {number}" for number in range(9)]


@pytest.fixture(params=["scratch", "hf"])
def policy(request, tmp_path) -> SidPolicy:
    """A policy that reads 32 tokens: nine items of three tokens, and one more to come."""
    if request.param == "scratch":
        sizes = {"hidden_dim": 32, "num_layers": 1, "num_heads": 2, "dropout": 0.0}
        return build_scratch_policy(PolicyConfig(max_tokens=MAX_TOKENS, **sizes), LEVEL_SIZES, 0)
    make_text_model(tmp_path / "base")
    torch.manual_seed(0)
    config = PolicyConfig(backbone="hf", base=str(tmp_path / "base"), max_tokens=MAX_TOKENS)
    return build_policy(config, LEVEL_SIZES, 0)


def _history(length: int) -> list[str]:
    sids = sid_texts(toy_trie().codes.numpy())
    return [sids[place % NUM_ITEMS] for place in range(length)]


def _read(policy: SidPolicy, prompt: str) -> list[int]:
    tokens, real = policy.tokenize([prompt])
    return tokens[0][real[0]].tolist()


def test_a_long_history_decodes_as_its_newest_items_alone(policy, tmp_path):
    """A scratch policy raised IndexError: it has a position for each of `max_tokens` tokens, and no more."""
    history, trie, newest = _history(20), toy_trie(), policy.max_history
    assert newest == (MAX_TOKENS - 2) // 3 - 1 == 9
    policy.eval()
    long, short = (recommend(policy, trie, [history_prompt(sids)], 5, 10)[0] for sids in (history, history[-newest:]))
    assert long.item_ids == short.item_ids and long.scores == short.scores
    assert len(_read(policy, history_prompt(history))) + len(LEVEL_SIZES) <= MAX_TOKENS
    policy.save(tmp_path / "saved")
    loaded = load_policy(tmp_path / "saved")
    assert loaded.max_tokens == MAX_TOKENS
    assert recommend(loaded, trie, [history_prompt(history)], 5, 10)[0].item_ids == long.item_ids


def test_a_cut_prompt_is_the_same_in_training_and_decoding(policy):
    prompt = history_prompt(_history(20))
    packed = pack_sequences(policy.tokenizer, [Texts([prompt], [_history(1)[0]])], policy.max_tokens)
    assert packed.num_cut_prompts == 1
    assert packed.tokens[: packed.prompt_lengths[0]].tolist() == _read(policy, prompt)


def test_long_histories_train_and_validate(policy, tmp_path):
    trie, prompt = toy_trie(), history_prompt(_history(30))
    sids = sid_texts(trie.codes.numpy())
    sequences = pack_sequences(policy.tokenizer, [Texts([prompt] * NUM_ITEMS, sids)], policy.max_tokens)
    progress = train_sft(
        PlainEngine(policy, make_optimizer(policy, 1e-3, 0.0), max_grad_norm=1.0),
        trie,
        sequences,
        ValidExamples([prompt], torch.tensor([0])),
        SftConfig(epochs=1, batch_tokens=128, eval_every_epochs=1),
        decoding=Decoding(20, 8),
        seed=0,
        best_folder=tmp_path / "best",
    )
    assert progress.records[-1]["num_cut_prompts"] == NUM_ITEMS
    assert progress.records[-1]["num_cut_completions"] == 0


def _titles(titles: list[str]) -> str:
    return "Titles:\n" + "".join(f"{title}\n" for title in titles) + "Item: "


def test_titles_lose_the_oldest_whole_titles_and_keep_what_is_asked(tmp_path):
    """Industrial's longest titles_to_sid has 1,150 tokens, and training raised."""
    make_text_model(tmp_path)
    policy = build_policy(PolicyConfig(backbone="hf", base=str(tmp_path), max_tokens=96), LEVEL_SIZES, 0)
    read = lambda text: policy.tokenizer(text)["input_ids"]  # noqa: E731
    packed = pack_sequences(policy.tokenizer, [Texts([_titles(TITLES)], ["<a_0><b_1>"])], policy.max_tokens)
    cut = packed.tokens[: packed.prompt_lengths[0]].tolist()
    kept = next(count for count in range(len(TITLES), 0, -1) if len(read(_titles(TITLES[-count:]))) + 3 <= 96)
    assert 1 <= kept < len(TITLES)
    assert cut == read(_titles(TITLES[-kept:])) == _read(policy, _titles(TITLES))


def test_a_completion_in_words_is_cut_at_its_end_and_one_of_sids_never(tmp_path):
    make_text_model(tmp_path)
    policy = build_policy(PolicyConfig(backbone="hf", base=str(tmp_path), max_tokens=24), LEVEL_SIZES, 0)
    history = _history(3)
    texts = Texts(["".join(history) + "\nTitle:", history[0]], [" a very long title of a rod\n", "".join(_history(6))])
    packed = pack_sequences(policy.tokenizer, [texts], policy.max_tokens)
    assert (packed.num_cut_prompts, packed.num_cut_completions) == (1, 1)
    batch = make_batch(packed, np.array([0, 1]), 0)
    title = policy.tokenizer(texts.completions[0])["input_ids"]
    assert batch.input_ids[0][batch.completion_mask[0]].tolist() == title[:12]
    kept = history[-1] + "\nTitle:"
    assert packed.tokens[: packed.prompt_lengths[0]].tolist() == policy.tokenizer(kept)["input_ids"]
    sids = policy.tokenizer(texts.completions[1])["input_ids"]
    assert batch.input_ids[1][batch.completion_mask[1]].tolist() == sids and len(sids) > 12


def test_an_item_that_does_not_fit_alone_is_an_error(tmp_path):
    make_text_model(tmp_path)
    policy = build_policy(PolicyConfig(backbone="hf", base=str(tmp_path), max_tokens=16), LEVEL_SIZES, 0)
    with pytest.raises(ValueError, match=r"policy.max_tokens: a prompt has \d+ tokens .* leaves room for 13"):
        policy.tokenize([_titles(["a title of far more than thirteen tokens"])])
    with pytest.raises(ValueError, match=r"policy.max_tokens = 4096, but .* reads at most 2048; lower it"):
        build_policy(PolicyConfig(backbone="hf", base=str(tmp_path), max_tokens=4096), LEVEL_SIZES, 0)


@given(st.lists(st.integers(0, 9), max_size=12), st.text("x \n", max_size=6), st.text("yz ", max_size=6), st.integers(9, 40))
def test_what_is_kept_are_the_newest_items_that_fit_between_the_same_words(items, before, behind, max_tokens):
    sids = [f"<a_{item}><b_0><c_1>" for item in items]
    prompt = before + "".join(sids) + behind
    assert split_prompt(prompt) == ((before, sids, behind) if sids else (prompt, [], ""))
    read = lambda texts: [[*text.replace("<", " <").split()] for text in texts]  # noqa: E731
    try:
        found = read_prompts([prompt], read, max_tokens, 3)
    except ValueError:
        assert len(read([before + "".join(sids[-1:]) + behind])[0]) > max_tokens - 3
        return
    fitting = [
        count
        for count in range(len(sids) + 1)
        if count <= items_that_fit(max_tokens, 3)
        and len(read([before + "".join(sids[len(sids) - count :]) + behind])[0]) <= max_tokens - 3
    ]
    kept = before + "".join(sids[len(sids) - max(fitting) :]) + behind
    assert found.rows == read([kept]) and found.num_cut == (max(fitting) < len(sids))
