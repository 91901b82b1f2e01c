"""Advantages within a group of roll-outs, and the losses of group relative policy optimisation over them."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Loss = Literal["grpo", "dr_grpo", "dapo", "gspo"]

SIGNAL = 1e-6
"""Rewards of a group that differ by less count as equal; division by their deviation would only amplify rounding."""


class Advantages(NamedTuple):
    """The advantage of each roll-out over its group."""

    values: Float[Tensor, "B G"]
    """0 in dead groups."""
    live: Bool[Tensor, " B"]
    """Live groups: those whose rewards differ; other groups carry no signal."""


class LossParts(NamedTuple):
    """The loss and its parts."""

    loss: Float[Tensor, ""]
    """Sum over live groups; divide by the number of live groups of all workers."""
    kl: Float[Tensor, ""]
    """Sum over live groups of the mean estimate per token, without its coefficient."""
    clipped: Float[Tensor, ""]
    """Sum over live groups of the share of ratios outside the clip range."""


def group_advantages(rewards: Float[Tensor, "B G"], scale_by_deviation: bool) -> Advantages:
    """Compute the advantage of each roll-out within its group.

    With the deviation: A = (r - mean) / std (DeepSeekMath, arXiv 2402.03300, section 4.1.2), with the population's std.
    Without: A = r - mean (Dr. GRPO, arXiv 2503.20783), which does not favour groups of nearly equal rewards.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    live = rewards.amax(1) - rewards.amin(1) > SIGNAL
    if scale_by_deviation:
        centred = centred / centred.square().mean(1, keepdim=True).sqrt().clamp(min=SIGNAL)
    return Advantages(centred * live[:, None], live)


def estimate_kl(log_probs: Float[Tensor, "*P"], reference: Float[Tensor, "*P"]) -> Float[Tensor, "*P"]:
    """Estimate KL(policy || reference) of single tokens: exp(d) - d - 1 with d = reference - policy.

    Never negative, unbiased for samples of the policy ("k3", Schulman 2020; DeepSeekMath eq. 4).
    """
    difference = reference - log_probs
    return difference.exp() - difference - 1


def group_loss(
    log_probs: Float[Tensor, "B G L"],
    old_log_probs: Float[Tensor, "B G L"],
    reference: Float[Tensor, "B G L"],
    tokens: Bool[Tensor, "B G L"],
    advantages: Advantages,
    *,
    kind: Loss,
    clip_low: float,
    clip_high: float,
    kl_coefficient: float,
) -> LossParts:
    """Compute the clipped surrogate loss of a batch of groups.

    With ratio w, advantage A and S = min(w A, clip(w, 1 - low, 1 + high) A), a group's objective is

    - `grpo`: mean over roll-outs of the mean over tokens of S (DeepSeekMath, arXiv 2402.03300, eq. 3);
    - `dr_grpo`: mean over roll-outs of the sum over tokens of S, divided by the constant L (arXiv 2503.20783, section 3.2);
    - `dapo`: mean of S over all tokens of the group (arXiv 2503.14476, eq. 8; use clip_high > clip_low);
    - `gspo`: as `grpo`, with one ratio per roll-out: exp of the mean log-ratio of its tokens (arXiv 2507.18071, eq. 5-7).

    The KL estimate has the same weights as S. Dead groups (equal rewards) are ignored.

    Args:
        log_probs: log-probabilities of the policy, with gradient; like the two others 0 where `tokens` is not set.
        tokens: real tokens, not padding.
    """
    tokens = tokens & advantages.live[:, None, None]
    log_ratio = torch.where(tokens, log_probs - old_log_probs, 0.0)
    if kind == "gspo":
        mean = log_ratio.sum(2, keepdim=True) / tokens.sum(2, keepdim=True).clamp(min=1)
        log_ratio = mean.expand_as(log_ratio)
    ratio, advantage = log_ratio.exp(), advantages.values[..., None]
    inside = ratio.clamp(1 - clip_low, 1 + clip_high)
    surrogate = torch.minimum(ratio * advantage, inside * advantage)
    divergence = estimate_kl(log_probs, reference)
    weights = _token_weights(tokens, kind)
    even = _token_weights(tokens, "dapo")
    return LossParts(
        loss=((kl_coefficient * divergence - surrogate) * weights).sum(),
        kl=(divergence.detach() * even).sum(),
        clipped=((ratio != inside).detach() * even).sum(),
    )


def _token_weights(tokens: Bool[Tensor, "B G L"], kind: Loss) -> Float[Tensor, "B G L"]:
    """Weight of each token in its group's objective."""
    num_rollouts = tokens.shape[1]
    if kind == "dapo":
        return tokens / tokens.sum((1, 2), keepdim=True).clamp(min=1)
    if kind == "dr_grpo":
        return tokens / (num_rollouts * tokens.shape[2])
    return tokens / (num_rollouts * tokens.sum(2, keepdim=True).clamp(min=1))
