"""Advantages and losses against hand-worked numbers."""

import math

import pytest
import torch

from digr.policy.training.advantages import Advantages, estimate_kl, group_advantages, group_loss

OPTIONS = {"clip_low": 0.2, "clip_high": 0.2, "kl_coefficient": 0.0}


def test_advantages_are_rewards_in_deviations_from_the_group_mean():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [3.0, 1.0, 3.0, 1.0]])
    scaled = group_advantages(rewards, scale_by_deviation=True)
    root = math.sqrt(3)
    torch.testing.assert_close(scaled.values, torch.tensor([[root, -1 / root, -1 / root, -1 / root], [1.0, -1.0, 1.0, -1.0]]))
    plain = group_advantages(rewards, scale_by_deviation=False)
    torch.testing.assert_close(plain.values, torch.tensor([[0.75, -0.25, -0.25, -0.25], [1.0, -1.0, 1.0, -1.0]]))


def test_groups_of_equal_rewards_are_dead_also_up_to_rounding():
    rewards = torch.tensor([[0.1 + 0.2, 0.3, 0.3], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    rewards[0, 0] += 1e-7
    found = group_advantages(rewards, scale_by_deviation=True)
    assert found.live.tolist() == [False, False, True]
    assert found.values[:2].abs().max() == 0


def test_the_kl_estimate_is_zero_for_equal_policies_and_follows_its_formula():
    assert estimate_kl(torch.tensor([-1.0]), torch.tensor([-1.0])).item() == 0
    assert estimate_kl(torch.tensor([-1.0]), torch.tensor([-2.0])).item() == pytest.approx(math.exp(-1) + 1 - 1)


def test_the_kl_estimate_of_samples_is_unbiased():
    policy, reference = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.5, 0.3, 0.2]).log()
    expected = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * estimate_kl(policy, reference)).sum(), expected)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # advantages 1 and -1, ratios 1, lengths 3 and 1: only weights of roll-outs differ
        ("grpo", -(1.0 - 1.0) / 2),
        ("gspo", -(1.0 - 1.0) / 2),
        ("dr_grpo", -(3 * 1.0 - 1 * 1.0) / 2 / 3),
        ("dapo", -(3 * 1.0 - 1 * 1.0) / 4),
    ],
)
def test_the_variants_weigh_tokens_as_published(kind, expected):
    tokens = torch.tensor([[[True, True, True], [True, False, False]]])
    log_probs = torch.where(tokens, -1.0, 0.0)
    advantages = Advantages(torch.tensor([[1.0, -1.0]]), torch.tensor([True]))
    parts = group_loss(log_probs, log_probs, log_probs, tokens, advantages, kind=kind, **OPTIONS)
    assert parts.loss.item() == pytest.approx(expected, abs=1e-6)
    assert parts.clipped == 0


def test_with_ratio_one_the_gradient_is_the_policy_gradient():
    tokens = torch.ones(1, 2, 2, dtype=torch.bool)
    log_probs = torch.full((1, 2, 2), -1.0, requires_grad=True)
    advantages = Advantages(torch.tensor([[2.0, -2.0]]), torch.tensor([True]))
    group_loss(log_probs, log_probs.detach(), log_probs.detach(), tokens, advantages, kind="grpo", **OPTIONS).loss.backward()
    torch.testing.assert_close(log_probs.grad, torch.tensor([[[-0.5, -0.5], [0.5, 0.5]]]))


def test_a_ratio_beyond_the_clip_stops_the_gradient_of_what_it_would_overdo():
    tokens = torch.ones(1, 2, 1, dtype=torch.bool)
    old = torch.zeros(1, 2, 1)
    log_probs = torch.tensor([[[math.log(1.5)], [math.log(1.5)]]], requires_grad=True)
    advantages = Advantages(torch.tensor([[1.0, -1.0]]), torch.tensor([True]))
    parts = group_loss(log_probs, old, old, tokens, advantages, kind="grpo", **OPTIONS)
    assert parts.loss.item() == pytest.approx(-(1.2 - 1.5) / 2)
    assert parts.clipped.item() == 1
    parts.loss.backward()
    torch.testing.assert_close(log_probs.grad.flatten(), torch.tensor([0.0, 0.75]))


def test_dapo_clips_higher_ratios_than_lower_ones():
    tokens = torch.ones(1, 2, 1, dtype=torch.bool)
    old = torch.zeros(1, 2, 1)
    log_probs = torch.tensor([[[math.log(1.5)], [math.log(0.5)]]])
    advantages = Advantages(torch.tensor([[1.0, -1.0]]), torch.tensor([True]))
    loss = group_loss(log_probs, old, old, tokens, advantages, kind="dapo", clip_low=0.2, clip_high=0.28, kl_coefficient=0.0).loss
    assert loss.item() == pytest.approx(-(1.28 - 0.8) / 2)


def test_gspo_uses_one_ratio_for_a_whole_roll_out():
    tokens = torch.ones(1, 1, 2, dtype=torch.bool)
    old = torch.zeros(1, 1, 2)
    log_probs = torch.tensor([[[math.log(1.3), math.log(1 / 1.3)]]])
    advantages = Advantages(torch.tensor([[1.0]]), torch.tensor([True]))
    sequence = group_loss(log_probs, old, old, tokens, advantages, kind="gspo", **OPTIONS).loss
    token = group_loss(log_probs, old, old, tokens, advantages, kind="grpo", **OPTIONS).loss
    assert (sequence.item(), token.item()) == (pytest.approx(-1.0), pytest.approx(-(1.2 + 1 / 1.3) / 2))


def test_dead_groups_and_padding_have_no_gradient_not_even_of_the_kl_guard():
    tokens = torch.tensor([[[True, True]], [[True, False]]])
    log_probs = torch.full((2, 1, 2), -1.0, requires_grad=True)
    advantages = Advantages(torch.tensor([[0.0], [1.0]]), torch.tensor([False, True]))
    old, reference = log_probs.detach(), torch.full((2, 1, 2), -3.0)
    options = OPTIONS | {"kl_coefficient": 0.5}
    group_loss(log_probs, old, reference, tokens, advantages, kind="grpo", **options).loss.backward()
    assert log_probs.grad[0].abs().max() == 0 and log_probs.grad[1, 0, 1] == 0 and log_probs.grad[1, 0, 0] != 0
