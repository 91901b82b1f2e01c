"""Constrained beam search: a prompt in, distinct real items out, best first.

The prompt is encoded once; the beams of a request stand behind it as branches of one tree, so they share its keys and
values. A beam below which one SID is left is settled: the rest of it has probability 1, and the model is not asked again.
A filter on items only ever removes codes, so at least min(beam width, items allowed) distinct items come out. Beams with
equal scores keep the order of their parents, then of their codes, in any batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from digr.policy.contexts import Context, ContextCache, encode
from digr.policy.model import SidPolicy
from digr.sids.filters import ItemFilter, item_filter, pack_mask
from digr.sids.trie import ROOT, SidTrie


class Beams(NamedTuple):
    """Ranked SIDs, best first."""

    node: Int[Tensor, "B M"]
    """Node below which the beam's SID is the only one; -1 where the request has fewer."""
    score: Float[Tensor, "B M"]
    """Log-probability of the SID; -inf where the request has fewer."""
    codes: Int[Tensor, "B M L"]
    """SID of each beam, -1 behind its end."""


class Ranking(NamedTuple):
    """Ranked items, best first."""

    item_index: Int[Tensor, "B M"]
    """Position in `trie.item_ids`; -1 where the request has fewer items."""
    score: Float[Tensor, "B M"]
    """Log-probability of the item; -inf where the request has fewer."""


class _State(NamedTuple):
    """The beams that one level hands to the next."""

    node: Int[Tensor, "B M"]
    score: Float[Tensor, "B M"]
    key: Float[Tensor, "B M"]
    """What beams are kept by: the score, or in a sampled search the perturbed one."""
    is_open: Bool[Tensor, "B M"]
    """Whether more than one SID lies below its node."""
    branch: Int[Tensor, "B M"]
    """Which branch token of the last level a beam came from; any for a settled one."""


class _Branches(NamedTuple):
    """The newest tokens of the open beams, those that are not settled."""

    beam: Int[Tensor, "B Q"]
    """Whose token it is; a request with fewer than Q open beams has settled ones here, whose tokens nobody reads."""
    hidden: Float[Tensor, "B Q D"]
    sees: Bool[Tensor, "B Q S"]
    """Which of the branch tokens so far are the beam's own."""


@torch.inference_mode()
def beam_search(
    policy: SidPolicy,
    trie: SidTrie,
    prompts: Sequence[str],
    beam_width: int,
    allowed: Bool[Tensor, "B N"] | ItemFilter | None = None,
    generator: torch.Generator | None = None,
    cache: ContextCache | None = None,
) -> Beams:
    """Find the most probable SIDs after each prompt; with a generator, sample SIDs without replacement.

    Args:
        prompts: B prompts, see `vocabulary.history_prompt`.
        beam_width: beams kept per level, M.
        allowed: items (places in trie order) that may come out, per request; None allows all.
        generator: makes the search stochastic (Gumbel top-k, Kool et al. 2019, arXiv 1903.06059): the beams are M different
            SIDs drawn from the policy one after the other, in the order of their drawing. On the policy's device.
        cache: encoded prompts of earlier calls; what a prompt begins with is not encoded again.

    Raises:
        ValueError: no prompt, or a request whose filter leaves no item.
    """
    if not prompts:
        raise ValueError("beam search: no prompts; pass at least one")
    chosen = _as_filter(allowed, len(prompts), trie)
    context = encode(policy, prompts, cache)
    first = torch.zeros(len(prompts), 1, dtype=torch.long, device=policy.device)
    state = _State(first + ROOT, first.float(), first.float(), trie.is_open(first + ROOT), branch=first)
    branches = _Branches(first, context.last[:, None], first.new_zeros(len(prompts), 1, 0, dtype=torch.bool))
    for level in range(trie.num_levels):
        if not (width := int(state.is_open.sum(1).max())):
            break
        if level:
            branches = _branch(policy, trie, state, branches, level - 1, width, context)
        state = _extend(policy, trie, state, branches, level, beam_width, chosen, generator)
    codes = trie.codes[trie.item_start[state.node.clamp(min=0)]].long()
    return Beams(state.node, state.score, torch.where(state.node[..., None] >= 0, codes, -1))


def _as_filter(allowed: Bool[Tensor, "B N"] | ItemFilter | None, num_prompts: int, trie: SidTrie) -> ItemFilter | None:
    if allowed is None:
        return None
    rows, items = (len(allowed.words), allowed.num_items) if isinstance(allowed, ItemFilter) else allowed.shape
    if (rows, items) != (num_prompts, trie.num_items):
        raise ValueError(f"beam search: expected allowed of shape {(num_prompts, trie.num_items)}, found {(rows, items)}")
    chosen = allowed if isinstance(allowed, ItemFilter) else item_filter(pack_mask(allowed), items)
    return chosen.to(trie.codes.device)


def _extend(
    policy: SidPolicy,
    trie: SidTrie,
    state: _State,
    branches: _Branches,
    level: int,
    beam_width: int,
    chosen: ItemFilter | None,
    generator: torch.Generator | None,
) -> _State:
    """Add one code to every beam that is not settled, and keep the best."""
    node = torch.where(state.is_open, state.node, -1).gather(1, branches.beam)
    child = trie.children(node)
    exists = child >= 0
    code = trie.node_code[child].clamp(max=trie.level_sizes[level] - 1).long()  # what is no child has some other level's code
    logits = policy.code_logits(branches.hidden, level).gather(-1, code)
    log_probs = torch.log_softmax(torch.where(exists, logits, -torch.inf), -1)
    if chosen is not None:  # after normalising: a filter never changes an item's score
        exists = _with_allowed_items(trie, node, child, chosen)
    grown = torch.where(exists, log_probs + state.score.gather(1, branches.beam)[..., None], -torch.inf)
    # beside what grows stand the settled beams
    nodes = torch.cat([child.flatten(1), state.node], 1)
    scores = torch.cat([grown.flatten(1), torch.where(state.is_open, -torch.inf, state.score)], 1)
    keys = scores
    if generator is not None:
        drawn = _perturb(grown, state.key.gather(1, branches.beam), generator)
        keys = torch.cat([drawn.flatten(1), torch.where(state.is_open, -torch.inf, state.key)], 1)
    best = _largest(keys, beam_width)
    score = scores.gather(1, best)
    after = torch.where(score > -torch.inf, nodes.gather(1, best), -1)
    branch = (best // child.shape[2]).clamp(max=child.shape[1] - 1)
    return _State(after, score, keys.gather(1, best), trie.is_open(after), branch)


def _with_allowed_items(
    trie: SidTrie, node: Int[Tensor, "B Q"], child: Int[Tensor, "B Q C"], chosen: ItemFilter
) -> Bool[Tensor, "B Q C"]:
    """Mark the children above an allowed item; a child's items end where its next sibling's begin, or its parent's end."""
    end = trie.item_end[node][..., None]
    bounds = torch.cat([torch.where(child >= 0, trie.item_start[child], end), end], 2)
    row = torch.arange(len(bounds), device=bounds.device)[:, None, None].expand_as(bounds)
    return chosen.num_before(row, bounds).diff() > 0


def _largest(keys: Float[Tensor, "B C"], count: int) -> Int[Tensor, "B M"]:
    """Return the places of the largest keys, largest first, equal ones in their order, which `topk` alone does not keep.

    Keys are at most 0, as log-probabilities are: the bits of their size, read as an integer, are in its order.
    """
    size = keys.abs().view(torch.int32).long() << 32
    place = torch.arange(keys.shape[1], device=keys.device)
    return (size | place).topk(min(count, keys.shape[1]), dim=1, largest=False).values & 0xFFFFFFFF


def _perturb(
    scores: Float[Tensor, "B Q C"], parent_key: Float[Tensor, "B Q"], generator: torch.Generator
) -> Float[Tensor, "B Q C"]:
    """Draw Gumbel keys of the children whose largest is their parent's key (equation 21 of the paper, stable form)."""
    noise = torch.empty_like(scores).exponential_(generator=generator).log().neg()
    drawn, parent = scores + noise, parent_key[..., None]
    below = drawn - drawn.amax(-1, keepdim=True).clamp(min=torch.finfo(drawn.dtype).min)
    gap = parent - drawn + torch.log(-torch.expm1(below))
    conditioned = parent - gap.clamp(min=0) - torch.log1p(torch.exp(-gap.abs()))
    return torch.where(drawn > -torch.inf, conditioned, -torch.inf)


def _branch(
    policy: SidPolicy, trie: SidTrie, state: _State, last: _Branches, level: int, width: int, context: Context
) -> _Branches:
    """Feed the newest code of each of at most `width` open beams, as one more token that sees the prompt and its own branch."""
    beam = torch.argsort(~state.is_open, dim=1, stable=True)[:, :width]
    node = state.node.gather(1, beam).clamp(min=0)
    code = trie.node_code[node].clamp(0, trie.level_sizes[level] - 1)  # a settled beam's may be another level's
    tokens = policy.token_ids(level)[code]
    origin = state.branch.gather(1, beam)[..., None].expand(-1, -1, last.sees.shape[2])
    own = torch.eye(width, dtype=torch.bool, device=node.device).expand(len(node), -1, -1)
    sees = torch.cat([last.sees.gather(1, origin), own], 2)
    visible = torch.cat([context.real[:, None].expand(-1, width, -1), sees], 2)
    positions = (context.real.sum(1, keepdim=True) + level).expand(-1, width)
    return _Branches(beam, context.steps(tokens, positions, visible), sees)


def rank_items(trie: SidTrie, beams: Beams, width: int, allowed: Bool[Tensor, "B N"] | ItemFilter | None = None) -> Ranking:
    """Turn SIDs into items; a SID that several items share gives each an equal part of its probability."""
    chosen = _as_filter(allowed, len(beams.node), trie)
    leaf = beams.node.clamp(min=0)
    count = torch.where(beams.node >= 0, trie.item_end[leaf] - trie.item_start[leaf], 0)
    if chosen is None and bool((count <= 1).all()):
        return Ranking(torch.where(beams.node >= 0, trie.item_start[leaf], -1)[:, :width], beams.score[:, :width])
    most = int(count.max())
    offset = torch.arange(most, device=leaf.device)
    item = trie.item_start[leaf][..., None] + offset
    present = offset < count[..., None]
    item = torch.where(present, item, 0)
    if chosen is not None:
        row = torch.arange(len(item), device=item.device)[:, None, None].expand_as(item)
        present = present & chosen.allows(row, item)
    score = torch.where(present, (beams.score - count.clamp(min=1).log())[..., None], -torch.inf).flatten(1)
    order = torch.sort(score, dim=1, descending=True, stable=True)
    ranked = torch.where(order.values > -torch.inf, item.flatten(1).gather(1, order.indices), -1)
    return Ranking(ranked[:, :width], order.values[:, :width])


class Recommendation(NamedTuple):
    """One request's list."""

    item_ids: list[str]
    scores: list[float]
    places: Int[np.ndarray, " M"]
    """The items' positions in `trie.item_ids`."""


def recommend(
    policy: SidPolicy,
    trie: SidTrie,
    prompts: Sequence[str],
    k: int,
    beam_width: int,
    allowed: Bool[Tensor, "B N"] | ItemFilter | None = None,
    cache: ContextCache | None = None,
) -> list[Recommendation]:
    """Return the best min(k, items allowed) items after each prompt, with their log-probabilities.

    The other arguments are those of `beam_search`.

    Raises:
        ValueError: k above the beam width, no prompt, or a request whose filter leaves no item.
    """
    if k > beam_width:
        raise ValueError(f"recommend: beam_width ({beam_width}) must be at least k ({k})")
    chosen = _as_filter(allowed, len(prompts), trie)
    ranking = rank_items(trie, beam_search(policy, trie, prompts, beam_width, chosen, cache=cache), k, chosen)
    results = []
    for index, score in zip(ranking.item_index.cpu(), ranking.score.cpu(), strict=True):
        places = index[index >= 0].numpy()
        results.append(Recommendation(trie.item_ids.take(places).to_pylist(), score[: len(places)].tolist(), places))
    return results
