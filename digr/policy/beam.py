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
from digr.policy.model import SidPolicy, blocked_of
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


class _Kept(NamedTuple):
    """The beams that one level hands to the next."""

    node: Int[Tensor, "B M"]
    score: Float[Tensor, "B M"]
    key: Float[Tensor, "B M"]
    """What beams are kept by: the score, or in a sampled search the perturbed one."""
    is_open: Bool[Tensor, "B M"]
    """Whether more than one SID lies below its node."""
    branch: Int[Tensor, "B M"]
    """Which branch token of the last level a beam came from; any for a settled one."""


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
    root = torch.full((len(prompts), 1), ROOT, device=policy.device)
    zero = context.last.new_zeros(len(prompts), 1, dtype=torch.float32)
    kept = _Kept(root, zero, zero, trie.is_open(root), branch=root)
    hidden, blocked = context.last[:, None], context.blocked[:, :, :0]
    for level in range(trie.num_levels):
        growing = _open_beams(kept)
        if not growing.node.shape[1]:
            break
        if level:
            hidden, blocked = _branch(policy, trie, growing, blocked, level - 1, context)
        kept = _extend(policy, trie, kept, growing, hidden, level, beam_width, chosen, generator)
    codes = trie.codes[trie.item_start[kept.node.clamp(min=0)]].long()
    return Beams(kept.node, kept.score, torch.where(kept.node[..., None] >= 0, codes, -1))


def _as_filter(allowed: Bool[Tensor, "B N"] | ItemFilter | None, num_prompts: int, trie: SidTrie) -> ItemFilter | None:
    if allowed is None:
        return None
    rows, items = (len(allowed.words), allowed.num_items) if isinstance(allowed, ItemFilter) else allowed.shape
    if (rows, items) != (num_prompts, trie.num_items):
        raise ValueError(f"beam search: expected allowed of shape {(num_prompts, trie.num_items)}, found {(rows, items)}")
    chosen = allowed if isinstance(allowed, ItemFilter) else item_filter(pack_mask(allowed), items)
    return chosen.to(trie.codes.device)


def _open_beams(kept: _Kept) -> _Kept:
    """Return the beams that are not settled, in their order; requests with fewer than others have some of node -1 last."""
    counts = kept.is_open.sum(1).tolist()
    if min(counts) == kept.node.shape[1]:
        return kept
    beam = torch.argsort(~kept.is_open, dim=1, stable=True)[:, : max(counts)]
    picked = _Kept(*(values.gather(1, beam) for values in kept))
    return picked._replace(node=torch.where(picked.is_open, picked.node, -1))


def _extend(
    policy: SidPolicy,
    trie: SidTrie,
    kept: _Kept,
    growing: _Kept,
    hidden: Float[Tensor, "B Q D"],
    level: int,
    beam_width: int,
    chosen: ItemFilter | None,
    generator: torch.Generator | None,
) -> _Kept:
    """Add one code to every beam that is not settled, and keep the best."""
    child = trie.children(growing.node)
    exists = child >= 0
    code = trie.node_code.take(child).clamp(max=trie.level_sizes[level] - 1).long()  # of no child: some other level's code
    logits = policy.code_logits(hidden, level).gather(-1, code)
    log_probs = torch.log_softmax(torch.where(exists, logits, -torch.inf), -1)
    if chosen is not None:  # after normalising: a filter never changes an item's score
        exists = _with_allowed_items(trie, growing.node, child, chosen)
    grown = torch.where(exists, log_probs + growing.score[..., None], -torch.inf)
    nodes, scores = child.flatten(1), grown.flatten(1)
    keys = scores if generator is None else _perturb(grown, growing.key, generator).flatten(1)
    if growing is not kept:  # beside what grows stand the settled beams
        nodes = torch.cat([nodes, kept.node], 1)
        scores, keys = (
            torch.cat([new, torch.where(kept.is_open, -torch.inf, old)], 1)
            for new, old in ((scores, kept.score), (keys, kept.key))
        )
    best = _largest(keys, beam_width)
    score = scores.gather(1, best)
    node = torch.where(score > -torch.inf, nodes.gather(1, best), -1)
    branch = (best // child.shape[2]).clamp(max=child.shape[1] - 1)
    return _Kept(node, score, keys.gather(1, best), trie.is_open(node), branch)


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
    policy: SidPolicy, trie: SidTrie, growing: _Kept, blocked: Float[Tensor, "B R S"], level: int, context: Context
) -> tuple[Float[Tensor, "B Q D"], Float[Tensor, "B Q T"]]:
    """Feed the newest code of each open beam, as one more token that sees the prompt and its own branch.

    Args:
        blocked: `blocked_of` the branch tokens so far that are not of the branch which ends in a token of the last level.

    Returns:
        The hidden states, and the same of these tokens, T = S + Q.
    """
    num_rows, width = growing.node.shape
    code = trie.node_code.take(growing.node).clamp(0, trie.level_sizes[level] - 1)  # of no beam: some other level's code
    origin = growing.branch[..., None].expand(-1, -1, blocked.shape[2])
    others = blocked_of(~torch.eye(width, dtype=torch.bool, device=code.device), blocked.dtype).expand(num_rows, -1, -1)
    behind = torch.cat([blocked.gather(1, origin), others], 2)
    positions = (context.length + level).expand(-1, width)
    visible = torch.cat([context.blocked.expand(-1, width, -1), behind], 2)
    return context.steps(policy.token_ids(level)[code], positions, visible), behind


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
    for index, score in zip(ranking.item_index.numpy(force=True), ranking.score.numpy(force=True), strict=True):
        places = index[index >= 0]
        results.append(Recommendation(trie.item_ids.take(places).to_pylist(), score[: len(places)].tolist(), places))
    return results
