"""The written-out GPT-2 is `GPT2Model.forward`: same hidden states, same keys and values, step after step."""

import pytest
import torch
from torch import nn

from digr.config.policy import PolicyConfig
from digr.policy.decoding.contexts import start_steps
from digr.policy.decoding.gpt2 import CompiledBranches, is_plain_gpt2
from digr.policy.decoding.steps import BranchBias, DecoderSteps
from digr.policy.model import SidPolicy, adapt, attention_bias, build_scratch_policy


def _policy() -> SidPolicy:
    policy = build_scratch_policy(PolicyConfig(hidden_dim=32, num_layers=3, num_heads=2), (5, 4, 6), 0).eval()
    with torch.no_grad():  # biases and norms start at 0 and 1, where a mistake in them would not show
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return policy


@torch.inference_mode()
def test_both_ways_agree_step_after_step_for_all_tokens_and_for_wanted_ones():
    torch.manual_seed(0)
    policy = _policy()
    tokens, more = torch.randint(18, (3, 7)), torch.randint(18, (3, 4))
    hidden = torch.rand(3, 4, 11) < 0.4
    hidden[:, :, 0] = False
    blocked = attention_bias(hidden, torch.float32)
    wanted = torch.tensor([[1], [3], [0]])
    positions = torch.arange(7).expand(3, -1)
    for first_wanted, next_wanted in ((None, wanted), (wanted, None)):
        fast, plain = start_steps(policy), DecoderSteps(policy, ())
        for steps in (fast, plain):
            steps.hidden = [
                steps.read(tokens, positions, None, first_wanted),
                steps.read(more, 7 + positions[:, :4], blocked, next_wanted),
            ]
        for one, two in zip(fast.hidden, plain.hidden, strict=True):
            torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-5)
        for one, two in zip(fast.keys_values, plain.keys_values, strict=True):
            torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-5)


@torch.inference_mode()
def test_steps_go_on_behind_given_keys_and_values():
    policy = _policy()
    tokens, positions = torch.randint(18, (2, 6)), torch.arange(6).expand(2, -1)
    whole = start_steps(policy).read(tokens, positions, None)
    for start in (start_steps, DecoderSteps):
        first = start(policy, ())
        first.read(tokens[:, :4], positions[:, :4], None)
        later = attention_bias(torch.ones(6, 6, dtype=torch.bool).triu(1)[4:].expand(2, -1, -1), torch.float32)
        rest = start(policy, first.keys_values).read(tokens[:, 4:], positions[:, 4:], later)
        torch.testing.assert_close(rest, whole[:, 4:], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_bf16_weights_agree_to_their_precision():
    torch.manual_seed(0)
    policy = _policy().to(torch.bfloat16)
    tokens, positions = torch.randint(18, (2, 6)), torch.arange(6).expand(2, -1)
    fast, plain = start_steps(policy).read(tokens, positions, None), DecoderSteps(policy, ()).read(tokens, positions, None)
    assert fast.dtype == torch.bfloat16
    torch.testing.assert_close(fast, plain, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("change", ["training", "activation", "scaling", "adapter"])
def test_a_gpt2_with_anything_unusual_runs_through_its_own_forward(change):
    policy = _policy()
    assert is_plain_gpt2(policy.lm)
    if change == "training":
        policy.train()
    elif change == "activation":
        policy.lm.config.activation_function = "relu"
    elif change == "scaling":
        policy.lm.config.scale_attn_by_inverse_layer_idx = True
    else:
        policy.lm.transformer.h[1].mlp.c_fc = nn.Sequential(policy.lm.transformer.h[1].mlp.c_fc)
    assert not is_plain_gpt2(policy.lm)


@torch.inference_mode()
def test_weights_that_change_in_place_are_seen_after_a_first_decoding():
    policy = _policy()
    tokens, positions = torch.randint(18, (2, 6)), torch.arange(6).expand(2, -1)
    before = start_steps(policy).read(tokens, positions, None)
    for parameter in policy.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.2)
    after = start_steps(policy).read(tokens, positions, None)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, DecoderSteps(policy, ()).read(tokens, positions, None), atol=2e-5, rtol=1e-5)


def test_adapters_after_a_first_decoding_are_used_by_the_next():
    policy = _policy()
    tokens, positions = torch.randint(18, (2, 6)), torch.arange(6).expand(2, -1)
    with torch.inference_mode():
        policy.code_logits(start_steps(policy).read(tokens, positions, None), 0)
    adapt(policy, PolicyConfig(backbone="hf", base="any", lora_rank=2))
    assert isinstance(start_steps(policy.eval()), DecoderSteps)
    assert policy.head is policy.lm.get_output_embeddings()


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_branches_see_their_prompt_their_own_tokens_and_nothing_else(dtype):
    """In fp32 attention is compiled, in fp64 it is PyTorch's under a mask; each is held against sequences read alone."""
    torch.manual_seed(0)
    policy = _policy().to(dtype)
    tokens, length = torch.randint(18, (2, 7)), torch.tensor([[7], [4]])
    grown = [torch.randint(18, (2, width)) for width in (3, 4, 2)]
    parents = [torch.zeros(2, 3, dtype=torch.long), torch.randint(3, (2, 4)), torch.randint(4, (2, 2))]
    for start in (start_steps, DecoderSteps):
        steps = start(policy, ())
        steps.read(tokens, torch.arange(7).expand(2, -1), None)
        paths = [[row[:count].tolist()] for row, (count,) in zip(tokens, length.tolist(), strict=True)]
        for new, parent in zip(grown, parents, strict=True):
            hidden = steps.branch(new, parent, length)
            if start is start_steps:
                assert isinstance(steps.branches, CompiledBranches if dtype == torch.float32 else BranchBias)
            for row in range(2):
                paths[row] = [paths[row][origin] + [token] for origin, token in zip(parent[row], new[row], strict=True)]
                for branch, path in enumerate(paths[row]):
                    alone = torch.tensor([[int(token) for token in path]])
                    whole = DecoderSteps(policy, ()).read(alone, torch.arange(len(path))[None], None)
                    torch.testing.assert_close(hidden[row, branch], whole[0, -1], atol=2e-5, rtol=1e-5)
