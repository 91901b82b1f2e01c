"""The policy on a GPU: the CPU's lists and losses, valid lists in bf16, and trainings that run."""

import copy

import numpy as np
import pytest
import torch

from benchmarks.decoder_vs_transformers import equal_but_for_ties, random_prompts, random_trie
from benchmarks.dense_mask import dense_lists, dense_tables
from benchmarks.shapes import random_policy
from benchmarks.trainings import grpo_seconds
from digr.config.policy import GrpoConfig, PolicyConfig
from digr.policy.decoding.search import recommend
from digr.policy.model import SidPolicy, build_scratch_policy
from digr.policy.training.batches import make_batch
from digr.policy.training.engine import PlainEngine, make_optimizer
from digr.policy.training.grpo import Prompts
from digr.sids.filters import allow_and_deny
from tests.policy.toy import strings, toy_policy, toy_prompts, toy_sequences, toy_trie

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
LEVELS = (32, 32, 32)
KINDS = ("scratch", "tiny-qwen2", "tiny-qwen3")


def _policy(kind: str) -> SidPolicy:
    if kind == "scratch":
        return build_scratch_policy(PolicyConfig(), LEVELS, seed=0).eval()
    return random_policy(kind, LEVELS)


@pytest.mark.parametrize("kind", KINDS)
def test_lists_in_fp32_are_those_of_the_cpu_with_and_without_a_filter(kind):
    rng, policy = np.random.default_rng(0), _policy(kind)
    trie = random_trie(2_000, rng, LEVELS)
    prompts, moved, there = random_prompts(trie, 8, rng), copy.deepcopy(policy).to(DEVICE), trie.to(DEVICE)
    denied = allow_and_deny([None] * 8, list(rng.integers(2_000, size=(8, 1_500))), 2_000)
    for allowed in (None, denied):
        wanted = recommend(policy, trie, prompts, 30, 30, allowed)
        found = recommend(moved, there, prompts, 30, 30, allowed)
        for cpu, gpu in zip(wanted, found, strict=True):
            assert equal_but_for_ties(gpu.item_ids[:20], cpu.item_ids, cpu.scores)
            np.testing.assert_allclose(gpu.scores[:20], cpu.scores[:20], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_lists_in_bf16_are_distinct_real_items_and_near_those_of_a_dense_search(kind):
    rng = np.random.default_rng(1)
    trie = random_trie(2_000, rng, LEVELS).to(DEVICE)
    policy, prompts = random_policy(kind, LEVELS, device=DEVICE, dtype=torch.bfloat16), random_prompts(trie, 8, rng)
    known = set(trie.item_ids.to_pylist())
    dense = dense_lists(policy, trie, dense_tables(trie), prompts, 50)
    for found, other in zip(recommend(policy, trie, prompts, 50, 50), dense, strict=True):
        assert len(set(found.item_ids)) == 50
        assert set(found.item_ids) <= known
        assert found.scores == sorted(found.scores, reverse=True)
        assert len(set(found.item_ids) & set(other)) >= 25


def test_a_step_of_fine_tuning_has_the_loss_and_the_weights_of_the_cpu():
    results = []
    for device in ("cpu", DEVICE):
        policy, trie = toy_policy().to(device), toy_trie().to(device)
        engine = PlainEngine(policy, make_optimizer(policy, 1e-2, 0.05), max_grad_norm=1.0)
        sequences = toy_sequences(policy, toy_trie())
        batch = make_batch(sequences, np.arange(16), policy.tokenizer.pad_token_id)
        losses = []
        for _ in range(3):
            input_ids, attention_mask, completion_mask = (part.to(device) for part in batch)
            loss = -engine(input_ids, attention_mask, completion_mask, trie).sum() / completion_mask.sum()
            engine.backward(loss)
            engine.step(1e-2)
            losses.append(float(loss.detach()))
        results.append((losses, [weight.detach().cpu() for weight in policy.parameters()]))
    (losses, weights), (gpu_losses, gpu_weights) = results
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(gpu_losses, losses, rtol=1e-4)
    for mine, other in zip(gpu_weights, weights, strict=True):
        # AdamW divides by the gradient's size: where it is about 0 its rounding moves a weight by up to the learning rate
        assert (mine - other).abs().mean() < 1e-4


@pytest.mark.parametrize("rollouts", ["beam", "sample", "distinct"])
def test_grpo_steps_run_in_bf16(rollouts):
    trie = toy_trie()
    policy, reference = toy_policy().to(DEVICE), toy_policy().to(DEVICE)
    before = copy.deepcopy(policy.state_dict())
    ids, prompts, targets = toy_prompts(trie)
    config = GrpoConfig(steps=3, prompts_per_step=12, group_size=10, rollouts=rollouts, lr=1e-2)
    parts = grpo_seconds(
        policy, reference, trie.to(DEVICE), Prompts(strings(ids), strings(prompts), targets), config, precision="bf16"
    )
    assert set(parts) == {"rollout", "reward", "update"}
    after = policy.state_dict()
    assert all(bool(torch.isfinite(value).all()) for value in after.values())
    assert any(not torch.equal(after[name], value) for name, value in before.items())


def test_a_checkpoint_goes_on_across_devices(tmp_path):
    policy = toy_policy().to(DEVICE)
    engine = PlainEngine(policy, make_optimizer(policy, 1e-2, 0.05), max_grad_norm=1.0)

    def step(engine, device):
        batch = make_batch(toy_sequences(engine.module, toy_trie()), np.arange(8), engine.module.tokenizer.pad_token_id)
        input_ids, attention_mask, completion_mask = (part.to(device) for part in batch)
        engine.backward(-engine(input_ids, attention_mask, completion_mask, toy_trie().to(device)).mean())
        engine.step(1e-2)

    step(engine, DEVICE)
    engine.save(tmp_path)
    other = toy_policy(seed=1)
    resumed = PlainEngine(other, make_optimizer(other, 1e-2, 0.05), max_grad_norm=1.0)
    resumed.load(tmp_path)
    for device, one in ((DEVICE, engine), ("cpu", resumed)):
        step(one, device)
    for mine, theirs in zip(other.parameters(), policy.parameters(), strict=True):
        assert (mine - theirs.cpu()).abs().mean() < 1e-4
