"""The interest-aware reward of GRPO: named terms, each logged, and their weighted sum by a preset or weights of one's own.

Known limitation: after division by a group's standard deviation, a term that is equal for all roll-outs (`valid` under the
trie) has no effect, and a term that is positive only together with `exact` (`quality`) has almost none.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from digr.config.policy import RewardConfig

TERMS = ("exact", "rank", "valid", "prefix", "quality", "interest", "user_interest", "canonical")

PRESETS: dict[str, dict[str, float]] = {
    # DeepInterestGR (2602.18907): the hit, and on a hit the quality of the target's interests; alpha from its successor
    "paper": {"exact": 1.0, "quality": 0.5},
    # the successor's R = exact + l_valid * valid + l_pref * LCP/3 + 0.5 * q * exact; both l are unpublished, 0.1 is our choice
    "successor": {"exact": 1.0, "valid": 0.1, "prefix": 0.1, "quality": 0.5},
    # MiniOneRec (2510.24431): rule reward plus ranking reward, equally weighted
    "minionerec": {"exact": 1.0, "rank": 1.0},
    # near misses that serve the target's interest earn at most 0.3, so that a hit always earns more
    "digr": {"exact": 1.0, "interest": 0.3},
}
"""Weights of the terms; a term that is not named has weight 0."""


def reward_weights(config: RewardConfig) -> dict[str, float]:
    """Return the weight of every term: the preset's, replaced by those that the config gives."""
    preset = PRESETS[config.preset]
    given = {term: getattr(config, term) for term in TERMS}
    return {term: preset.get(term, 0.0) if given[term] is None else given[term] for term in TERMS}


def reward_terms(
    codes: Int[Tensor, "B G L"],
    target_codes: Int[Tensor, "B L"],
    item_index: Int[Tensor, "B G"],
    target_index: Int[Tensor, " B"],
    quality: Float[Tensor, " N"],
    *,
    interest_embeddings: Float[Tensor, "N D"] | None = None,
    user_embeddings: Float[Tensor, "B D"] | None = None,
    canonical_cosine: Float[Tensor, "B G"] | None = None,
    num_levels: int | None = None,
    scores: Float[Tensor, "B G"] | None = None,
) -> dict[str, Float[Tensor, "B G"]]:
    """Compute every reward term of B groups of G roll-outs; terms whose inputs are not given are zero.

    A hit compares items, not codes, because without a suffix level several items may share codes.

    - exact: 1 for the target.
    - rank: 0 for the target, else -w_r / sum(w) with w_r = 1 / log2(r + 1) for the roll-out on rank r = 1..G, so that the
      most probable mistakes cost most; 0 in a group without a hit, as in MiniOneRec's code (ranking reward).
    - valid: 1 for a real item.
    - prefix: number of leading codes equal to the target's, divided by `num_levels`; the suffix level never counts.
    - quality: the target's interest quality for the target, else 0.
    - interest: cosine of the roll-out's and the target's trusted-interest vectors, clipped at 0, times the roll-out's
      quality; 0 if either has none.
    - user_interest: cosine of the roll-out's and the user's trusted-interest vectors, clipped at 0; 0 if either has none.
    - canonical: cosine of the roll-out's and the target's profiles of canonical interests, times the roll-out's quality; 0 if
      either has none.

    Args:
        codes: roll-outs, -1 padded.
        target_codes: targets, -1 padded.
        item_index: items of the roll-outs, -1 if the codes are no item.
        target_index: items of the targets.
        quality: interest quality of all N items, in [0, 1].
        interest_embeddings: unit vectors of all N items, zero rows for items without interests.
        user_embeddings: unit vectors of the groups' users, zero rows for users without interests; needs `interest_embeddings`.
        canonical_cosine: cosine of the profiles of roll-out and target, in [0, 1]; ignored for roll-outs that are no item.
        num_levels: semantic levels, without the suffix; all L if not given.
        scores: log-probabilities that rank a group; if not given, groups are already sorted best first, like beams.
    """
    levels = num_levels or codes.shape[-1]
    valid = item_index >= 0
    exact = valid & (item_index == target_index[:, None])
    real = item_index.clamp(min=0)
    same = (codes == target_codes[:, None])[..., :levels] & (target_codes >= 0)[:, None, :levels]
    interest = user_interest = torch.zeros_like(quality[real])
    if interest_embeddings is not None:
        cosine = torch.einsum("bgd,bd->bg", interest_embeddings[real], interest_embeddings[target_index])
        interest = cosine.clamp(min=0) * quality[real] * valid
        if user_embeddings is not None:
            cosine = torch.einsum("bgd,bd->bg", interest_embeddings[real], user_embeddings)
            user_interest = cosine.clamp(min=0) * valid
    canonical = torch.zeros_like(interest)
    if canonical_cosine is not None:
        canonical = (canonical_cosine * quality[real]).where(valid, 0.0)
    return {
        "exact": exact.to(quality.dtype),
        "rank": _rank_penalty(exact, scores).to(quality.dtype),
        "valid": valid.to(quality.dtype),
        "prefix": same.cumprod(-1).sum(-1).to(quality.dtype) / levels,
        "quality": exact * quality[target_index][:, None],
        "interest": interest,
        "user_interest": user_interest,
        "canonical": canonical,
    }


def total_reward(terms: Mapping[str, Float[Tensor, "B G"]], weights: Mapping[str, float]) -> Float[Tensor, "B G"]:
    """Return the weighted sum of the terms."""
    return torch.stack([weights.get(term, 0.0) * value for term, value in terms.items()]).sum(0)


def _rank_penalty(exact: Tensor, scores: Tensor | None) -> Tensor:
    ranks = torch.arange(1, exact.shape[1] + 1, device=exact.device, dtype=torch.float64)
    weight = 1 / torch.log2(ranks + 1)
    penalty = (-weight / weight.sum()).expand(exact.shape)
    if scores is not None:
        # the rank of a roll-out is the position of its index in descending order
        penalty = penalty.gather(1, scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1))
    return penalty * ~exact * exact.any(dim=1, keepdim=True)
