"""Groups of completions for policy training: the beam on the trie, or samples with or without replacement."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from digr.policy.decoding.search import Beams, beam_search
from digr.policy.model import SidPolicy, tree_inputs
from digr.sids.trie import ROOT, SidTrie


class Rollouts(NamedTuple):
    """G completions of each of B prompts; every one is a real item."""

    codes: Int[Tensor, "B G L"]
    """SIDs, -1 after the end of a shorter one."""
    item_index: Int[Tensor, "B G"]
    """Position in `trie.item_ids`; the first item if several share a SID."""


@torch.no_grad()
def rollout(
    policy: SidPolicy,
    trie: SidTrie,
    prompts: Sequence[str],
    group_size: int,
    mode: Literal["beam", "sample", "distinct"],
    *,
    generator: torch.Generator,
) -> Rollouts:
    """Draw a group of completions per prompt.

    Args:
        mode: "beam" takes the G most probable SIDs, best first; "sample" draws G independent SIDs from the policy, which may
            repeat; "distinct" draws G different SIDs, without replacement.
        generator: for samples, on the policy's device; the beam does not use it.

    Raises:
        ValueError: the catalogue has fewer than G SIDs, but they must be different.
    """
    if mode == "sample":
        return _sample(policy, trie, prompts, group_size, generator)
    return best_rollouts(
        trie, beam_search(policy, trie, prompts, group_size, generator=generator if mode == "distinct" else None), group_size
    )


def best_rollouts(trie: SidTrie, beams: Beams, group_size: int) -> Rollouts:
    """Take the best G beams of each prompt as its group.

    Raises:
        ValueError: there are fewer than G beams.
    """
    node = beams.node[:, :group_size]
    if node.shape[1] < group_size or bool((node < 0).any()):
        raise ValueError(f"grpo.group_size: {group_size} different roll-outs need as many SIDs; the catalogue has fewer")
    return Rollouts(trie.sids(node), trie.item_start[node])


def _sample(policy: SidPolicy, trie: SidTrie, prompts: Sequence[str], group_size: int, generator: torch.Generator) -> Rollouts:
    """Sample level by level; a group's completions are branches of one sequence, which is recomputed for each level."""
    input_ids, real = policy.tokenize(prompts)
    rows = torch.arange(len(prompts), device=policy.device)
    codes = torch.full((len(prompts), group_size, trie.num_levels), -1, device=policy.device)
    node = torch.full((len(prompts), group_size), ROOT, device=policy.device)
    for level in range(trie.num_levels):
        growing = ~trie.is_leaf(node)
        if not bool(growing.any()):
            break
        hidden = policy.hidden(**tree_inputs(policy, input_ids, real, codes[:, :, :level]))
        if level == 0:
            source = hidden[rows, real.sum(1) - 1][:, None].expand(-1, group_size, -1)
        else:
            source = hidden[:, input_ids.shape[1] :].unflatten(1, (group_size, level))[:, :, -1]
        logits = policy.code_logits(source[growing], level)
        logits = logits.masked_fill(~trie.allowed_mask(node[growing], level), -torch.inf)
        drawn = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator).squeeze(-1)
        codes[..., level][growing] = drawn
        node = torch.where(growing, trie.child(node, codes[:, :, level]), node)
    return Rollouts(codes, trie.item_start[node])
