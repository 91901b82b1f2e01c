"""A Hugging Face backbone: SID tokens start from words, LoRA trains little and saves a plain model that decodes the same."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from digr.config import build_config
from digr.config.policy import PolicyConfig, SftConfig
from digr.policy.decoding.search import recommend
from digr.policy.model import SidPolicy, adapt, build_policy, checkpoint_activations, load_policy, train_without_dropout
from digr.policy.training.batches import make_batch
from digr.policy.training.engine import PlainEngine, make_optimizer
from digr.policy.training.sft import train_sft
from digr.policy.training.validation import Decoding
from tests.policy.toy import LEVEL_SIZES, NUM_ITEMS, toy_prompts, toy_sequences, toy_trie, toy_valid
from tests.tiny_models import make_text_model

TEXTS = [["trout fishing", "weekend", "", "trout"], ["a b", "c", "d", "e"], ["", "x"]]


@pytest.fixture(params=["tied", "untied"])
def config(request, tmp_path) -> PolicyConfig:
    """A random two-layer Qwen3 with LoRA, with one table for input and output, or two."""
    make_text_model(tmp_path / "base", tie_word_embeddings=request.param == "tied")
    return PolicyConfig(backbone="hf", base=str(tmp_path / "base"), lora_rank=4, max_tokens=64)


def _policy(config: PolicyConfig, texts=TEXTS) -> SidPolicy:
    torch.manual_seed(0)
    return build_policy(config, LEVEL_SIZES, 0, texts)


def _log_probs(policy: SidPolicy) -> torch.Tensor:
    trie = toy_trie()
    _, prompts, targets = toy_prompts(trie)
    input_ids, mask = policy.tokenize(prompts)
    return policy(input_ids, mask, trie=trie, codes=trie.codes.long()[targets][:, None])


def _word_log_probs(policy: SidPolicy) -> torch.Tensor:
    text = policy.tokenizer("<a_0> fishing")["input_ids"]
    mask = torch.tensor([[False] + [True] * (len(text) - 1)])
    return policy(torch.tensor([text]), torch.ones_like(mask), mask, toy_trie())


def test_lora_trains_little_saves_a_plain_model_and_decodes_the_same_again(config, tmp_path):
    policy = _policy(config)
    with torch.no_grad():
        before = _log_probs(policy)
        adapt(policy, config)
        assert torch.equal(before, _log_probs(policy)), "adapters change nothing before a step"
    frozen = {name: value.clone() for name, value in policy.named_parameters() if not value.requires_grad}
    trained = [name for name, value in policy.named_parameters() if value.requires_grad]
    assert all("lora_" in name or "trainable_tokens" in name for name in trained)
    engine = PlainEngine(policy, make_optimizer(policy, 1e-2, 0.0), max_grad_norm=1.0)
    assert sum(len(group["params"]) for group in engine.optimizer.param_groups) == len(trained)
    losses = []
    for _ in range(5):
        loss = -_log_probs(policy).sum() / NUM_ITEMS
        engine.backward(loss)
        engine.step(1e-2)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, frozen[name]) for name, value in policy.named_parameters() if name in frozen)
    rows = [value for name, value in policy.named_parameters() if "trainable_tokens" in name]
    assert all(value.shape[0] == sum(LEVEL_SIZES) for value in rows), "only SID tokens' embeddings train"

    (tmp_path / "state").mkdir()
    engine.save(tmp_path / "state")
    assert set(torch.load(tmp_path / "state" / "engine.pt", weights_only=True)["weights"]) == set(trained)
    policy.eval().save(tmp_path / "out")
    assert not any(path.name.startswith("adapter") for path in (tmp_path / "out").iterdir())
    plain = load_policy(tmp_path / "out")
    assert not any("lora_" in name for name, _ in plain.named_parameters())
    assert plain.lm.config.tie_word_embeddings == policy.lm.config.tie_word_embeddings
    with torch.no_grad():
        torch.testing.assert_close(_log_probs(plain), _log_probs(policy), atol=1e-5, rtol=0)
    _, prompts, _ = toy_prompts(toy_trie())
    lists = [[found.item_ids for found in recommend(one, toy_trie(), prompts[:4], 5, 8)] for one in (plain, policy)]
    assert lists[0] == lists[1]


def test_without_adapters_a_policy_is_the_one_that_training_started_from_and_it_trains_on_behind_that(config):
    policy = _policy(config)
    with torch.no_grad():
        start, words = _log_probs(policy), _word_log_probs(policy)
    adapt(policy, config)
    engine = PlainEngine(policy, make_optimizer(policy, 1e-2, 0.0), max_grad_norm=1.0)
    trained = {name for name, value in policy.named_parameters() if value.requires_grad}
    for _ in range(2):
        engine.backward(-_log_probs(policy).sum())
        engine.step(1e-2)
        with engine.reference_model() as reference, torch.no_grad():
            assert torch.equal(_log_probs(reference), start)
            assert torch.equal(_word_log_probs(reference), words)
        assert {name for name, value in policy.named_parameters() if value.requires_grad} == trained
        with torch.no_grad():
            assert not torch.allclose(_log_probs(policy), start, atol=1e-3)
            assert not torch.allclose(_word_log_probs(policy), words, atol=1e-3)


def test_lora_learns_the_planted_successor_and_a_saved_policy_takes_new_adapters(config, tmp_path):
    config = config.model_copy(update={"lora_alpha": 8.0})
    policy, trie = _policy(config), toy_trie()
    adapt(policy, config)
    sft = SftConfig(epochs=10, lr=5e-3, batch_tokens=256, eval_every_epochs=5)
    progress = train_sft(
        PlainEngine(policy, make_optimizer(policy, sft.lr, 0.0), max_grad_norm=1.0),
        trie,
        toy_sequences(policy, trie),
        toy_valid(trie),
        sft,
        decoding=Decoding(20, 24),
        seed=0,
        best_folder=tmp_path / "best",
        resume=None,
        save=lambda record, write: None,
        report=lambda record: None,
    )
    assert progress.best > 0.5, "a random list of 10 of 24 items has .19"
    loaded = load_policy(tmp_path / "best")
    with torch.no_grad():
        before = _log_probs(loaded)
        adapt(loaded, config)
        assert torch.equal(before, _log_probs(loaded)), "as GRPO starts"


def test_a_sid_token_starts_as_the_mean_of_its_texts_tokens_and_other_rows_stay(config):
    base = AutoModelForCausalLM.from_pretrained(config.base, dtype=torch.float32)
    policy = _policy(config)
    for table, old in (
        (policy.lm.get_input_embeddings().weight, base.get_input_embeddings().weight),
        (policy.lm.get_output_embeddings().weight, base.get_output_embeddings().weight),
    ):
        tokens = policy.tokenizer("trout fishing", add_special_tokens=False)["input_ids"]
        torch.testing.assert_close(table[policy.token_ids(0)[0]], old[tokens].mean(0))
        assert torch.equal(table[: len(old)], old)


def test_codes_without_a_text_start_alike_with_and_without_texts_for_others(config):
    policy, other = _policy(config), _policy(config, None)
    row = policy.token_ids(0)[2]
    assert torch.equal(policy.lm.get_input_embeddings().weight[row], other.lm.get_input_embeddings().weight[row])
    assert not torch.equal(*(one.lm.get_input_embeddings().weight[one.token_ids(0)[0]] for one in (policy, other)))


def test_full_training_of_an_hf_backbone_trains_all_weights_in_fp32(config):
    policy = _policy(config)
    adapt(policy, config.model_copy(update={"lora_rank": 0}))
    assert all(value.requires_grad and value.dtype == torch.float32 for value in policy.parameters())


@pytest.mark.parametrize("adapted", [False, True])
def test_text_completions_are_normalised_over_the_whole_vocabulary_and_sids_over_the_trie(config, adapted):
    policy = _policy(config).eval()
    if adapted:
        adapt(policy, config)
        with torch.no_grad():
            for name, value in policy.named_parameters():
                if "trainable_tokens" in name:
                    value.mul_(3)
    prompt = policy.tokenizer("<a_0><b_0>")["input_ids"]
    text = policy.tokenizer(" fishing", add_special_tokens=False)["input_ids"][:1]
    input_ids = torch.tensor([prompt + text])
    mask = torch.tensor([[False, False, True]])
    with torch.no_grad():
        found = policy(input_ids, torch.ones_like(mask), mask, toy_trie())
        expected = torch.log_softmax(policy.lm(input_ids).logits[0, 1], -1)[text[0]]
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0, expected.item()]]))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gradient_checkpointing_gives_the_same_gradients_of_trees_and_of_sequences(config, attention):
    config = config.model_copy(update={"attention": attention})
    found = []
    for is_on in (False, True):
        policy = _policy(config)
        adapt(policy, config)
        if is_on:
            checkpoint_activations(policy)
        policy.train()
        sequences = toy_sequences(policy, toy_trie(), num=4)
        batch = make_batch(sequences, np.arange(4), policy.tokenizer.pad_token_id)
        assert policy.lm.is_gradient_checkpointing == is_on
        (_log_probs(policy).sum() + policy(*batch, trie=toy_trie()).sum()).backward()
        found.append({name: value.grad for name, value in policy.named_parameters() if value.requires_grad})
    plain, checkpointed = found
    assert plain.keys() == checkpointed.keys() and any("lora_" in name for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


@pytest.mark.parametrize("start", [SidPolicy.train, train_without_dropout], ids=["sft", "grpo"])
def test_gradient_checkpointing_keeps_fewer_activations(config, start):
    """GRPO trains in evaluation mode, in which transformers keeps all activations whatever it was told."""
    config = config.model_copy(update={"lora_rank": 0})
    sizes = []
    for is_on in (False, True):
        policy, saved = _policy(config), []
        if is_on:
            checkpoint_activations(policy)
        with torch.autograd.graph.saved_tensors_hooks(lambda one, to=saved: to.append(one.nbytes) or one, lambda one: one):
            start(policy)
            _log_probs(policy)
        sizes.append(sum(saved))
    assert sizes[1] < 0.7 * sizes[0]


def test_a_trained_policy_is_loaded_in_the_number_format_asked_for_and_ranks_nearly_the_same(config, tmp_path):
    policy = _policy(config)
    policy.eval().save(tmp_path / "out")
    plain, half = load_policy(tmp_path / "out"), load_policy(tmp_path / "out", dtype="bf16")
    assert (plain.lm.dtype, half.lm.dtype) == (torch.float32, torch.bfloat16)
    with torch.no_grad():
        torch.testing.assert_close(_log_probs(half), _log_probs(plain), atol=0.05, rtol=0)
    _, prompts, _ = toy_prompts(toy_trie())
    lists = [[set(found.item_ids) for found in recommend(one, toy_trie(), prompts[:8], 10, 24)] for one in (plain, half)]
    assert np.mean([len(one & other) / 10 for one, other in zip(*lists, strict=True)]) > 0.8


def test_attention_that_cannot_read_the_masks_of_branches_is_refused(config):
    assert _policy(config.model_copy(update={"attention": "eager"})).lm.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match=r"policy.attention: Input should be 'sdpa' or 'eager' .found 'flash_attention_2'"):
        build_config({"run": {"dir": "x"}, "policy": {"attention": "flash_attention_2"}}, where="test")


def test_lora_of_a_scratch_policy_and_a_missing_base_say_what_to_change():
    with pytest.raises(ValueError, match=r'lora_rank = 8 needs backbone = "hf"'):
        build_config({"run": {"dir": "x"}, "policy": {"lora_rank": 8}}, where="test")
    with pytest.raises(ValueError, match=r"policy\.base: is empty; backbone = .hf. needs a local folder or a hub model"):
        build_policy(PolicyConfig(backbone="hf"), LEVEL_SIZES, 0)


def test_the_saved_folder_is_a_hugging_face_model(config, tmp_path):
    policy = _policy(config)
    adapt(policy, config)
    policy.save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
    assert {"model.safetensors", "tokenizer.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
