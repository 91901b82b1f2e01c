"""Constrained beam search: a prompt in, distinct real items out, best first.

The prompt is encoded once; the beams of a request stand behind it as branches of one tree, so they share its keys and
values. A filter on items only ever removes codes, so at least min(beam width, items allowed) distinct items come out.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from digr.policy.model import SidPolicy, additive_mask
from digr.sids.trie import ROOT, SidTrie


class Beams(NamedTuple):
    """Ranked leaves of the trie, best first."""

    node: Int[Tensor, "B M"]
    """Leaf of each beam; -1 where the request has fewer."""
    score: Float[Tensor, "B M"]
    """Log-probability of the leaf; -inf where the request has fewer."""
    codes: Int[Tensor, "B M L"]
    """SID of each beam, -1 behind its end."""


class Ranking(NamedTuple):
    """Ranked items, best first."""

    item_index: Int[Tensor, "B M"]
    """Position in `trie.item_ids`; -1 where the request has fewer items."""
    score: Float[Tensor, "B M"]
    """Log-probability of the item; -inf where the request has fewer."""


class _State(NamedTuple):
    """What one level hands to the next."""

    node: Int[Tensor, "B M"]
    score: Float[Tensor, "B M"]
    key: Float[Tensor, "B M"]
    """What beams are kept by: the score, or in a sampled search the perturbed one."""
    codes: Int[Tensor, "B M L"]
    ancestors: Bool[Tensor, "B M S"]
    """Which of the branch tokens so far a beam descends from."""


@torch.inference_mode()
def beam_search(
    policy: SidPolicy,
    trie: SidTrie,
    prompts: Sequence[str],
    beam_width: int,
    allowed: Bool[Tensor, "B N"] | None = None,
    generator: torch.Generator | None = None,
) -> Beams:
    """Find the most probable SIDs after each prompt; with a generator, sample SIDs without replacement.

    Args:
        prompts: B prompts, see `vocabulary.history_prompt`.
        beam_width: beams kept per level, M.
        allowed: items (in trie order) that may come out, per request; None allows all.
        generator: makes the search stochastic (Gumbel top-k, Kool et al. 2019, arXiv 1903.06059): the beams are M different
            SIDs drawn from the policy one after the other, in the order of their drawing. On the policy's device.

    Raises:
        ValueError: no prompt, or a request whose filter leaves no item.
    """
    items_before = _items_before(allowed, len(prompts), trie)
    input_ids, real = policy.tokenize(prompts)
    cache = DynamicCache()
    hidden = policy.hidden(input_ids=input_ids, past_key_values=cache, use_cache=True)
    last = real.sum(1) - 1
    rows = torch.arange(len(prompts), device=policy.device)
    source = hidden[rows, last][:, None]  # [B, 1, D]
    state = _State(
        node=torch.full((len(prompts), 1), ROOT, device=policy.device),
        score=torch.zeros(len(prompts), 1, device=policy.device),
        key=torch.zeros(len(prompts), 1, device=policy.device),
        codes=torch.full((len(prompts), 1, trie.num_levels), -1, device=policy.device),
        ancestors=torch.zeros(len(prompts), 1, 0, dtype=torch.bool, device=policy.device),
    )
    for level in range(trie.num_levels):
        state = _extend(policy, trie, state, source, level, beam_width, items_before, generator)
        growing = (state.node >= 0) & ~trie.is_leaf(state.node)
        if level + 1 == trie.num_levels or not bool(growing.any()):
            break
        source, state = _branch(policy, state, level, real, cache)
    return Beams(state.node, state.score, state.codes)


def _items_before(allowed: Bool[Tensor, "B N"] | None, num_prompts: int, trie: SidTrie) -> Int[Tensor, "B N1"] | None:
    if not num_prompts:
        raise ValueError("beam search: no prompts; pass at least one")
    if allowed is None:
        return None
    if allowed.shape != (num_prompts, trie.num_items):
        raise ValueError(f"beam search: expected allowed of shape {(num_prompts, trie.num_items)}, found {tuple(allowed.shape)}")
    if not bool(allowed.any(1).all()):
        empty = torch.nonzero(~allowed.any(1)).flatten().tolist()
        raise ValueError(f"beam search: the filter of request {empty[0]} leaves no item; loosen it")
    return torch.nn.functional.pad(allowed.to(trie.codes.device).long().cumsum(1), (1, 0))


def _extend(
    policy: SidPolicy,
    trie: SidTrie,
    state: _State,
    source: Float[Tensor, "B M D"],
    level: int,
    beam_width: int,
    items_before: Int[Tensor, "B N1"] | None,
    generator: torch.Generator | None,
) -> _State:
    """Add one code to every beam that is not at its end, and keep the best."""
    num_rows, num_beams = state.node.shape
    live = (state.node >= 0) & ~trie.is_leaf(state.node)
    row, beam = torch.nonzero(live, as_tuple=True)
    logits = policy.code_logits(source[row, beam], level)
    log_probs = torch.log_softmax(logits.masked_fill(~trie.allowed_mask(state.node[row, beam], level), -torch.inf), -1)
    if items_before is not None:  # after normalising: a filter never changes an item's score
        log_probs = log_probs.masked_fill(~trie.allowed_mask(state.node[row, beam], level, items_before, row), -torch.inf)
    width = trie.level_sizes[level]
    # one more column carries the beams that already ended
    scores = state.score.new_full((num_rows, num_beams, width + 1), -torch.inf)
    scores[row, beam, :width] = log_probs + state.score[row, beam, None]
    scores[..., width] = torch.where(live, -torch.inf, state.score)
    keep = min(beam_width, num_beams * (width + 1))
    keys = scores if generator is None else _perturb(scores, state.key, width, generator)
    key, flat = keys.flatten(1).topk(keep, dim=1)
    score = scores.flatten(1).gather(1, flat)
    parent, code = flat // (width + 1), flat % (width + 1)
    ended = code == width
    before = state.node.gather(1, parent)
    node = torch.where(ended, before, trie.child(before, torch.where(ended, -1, code)))
    node = torch.where(score > -torch.inf, node, -1)
    codes = state.codes.gather(1, parent[..., None].expand(-1, -1, trie.num_levels)).clone()
    codes[:, :, level] = torch.where(ended | (node < 0), -1, code)
    ancestors = state.ancestors.gather(1, parent[..., None].expand(-1, -1, state.ancestors.shape[2]))
    return _State(node, score, key, codes, ancestors)


def _perturb(
    scores: Float[Tensor, "B M W1"], parent_key: Float[Tensor, "B M"], width: int, generator: torch.Generator
) -> Float[Tensor, "B M W1"]:
    """Draw Gumbel keys of the children whose largest is their parent's key (equation 21 of the paper, stable form).

    The last column, a beam that ended, keeps its key.
    """
    noise = torch.empty_like(scores[..., :width]).exponential_(generator=generator).log().neg()
    drawn, parent = scores[..., :width] + noise, parent_key[..., None]
    below = drawn - drawn.amax(-1, keepdim=True).clamp(min=torch.finfo(drawn.dtype).min)
    gap = parent - drawn + torch.log(-torch.expm1(below))
    conditioned = parent - gap.clamp(min=0) - torch.log1p(torch.exp(-gap.abs()))
    keys = torch.where(drawn > -torch.inf, conditioned, -torch.inf)
    return torch.cat([keys, torch.where(scores[..., width:] > -torch.inf, parent, -torch.inf)], -1)


def _branch(
    policy: SidPolicy, state: _State, level: int, real: Bool[Tensor, "B T"], cache: DynamicCache
) -> tuple[Float[Tensor, "B M D"], _State]:
    """Feed each beam's newest code, as one more branch token that sees the prompt and its own ancestors."""
    num_rows, num_beams = state.node.shape
    tokens = policy.token_ids(level)[state.codes[:, :, level].clamp(min=0)]
    own = torch.eye(num_beams, dtype=torch.bool, device=tokens.device).expand(num_rows, -1, -1)
    ancestors = torch.cat([state.ancestors, own], 2)
    visible = torch.cat([real[:, None].expand(-1, num_beams, -1), ancestors], 2)
    hidden = policy.hidden(
        input_ids=tokens,
        attention_mask=additive_mask(visible, policy.lm.dtype),
        position_ids=(real.sum(1, keepdim=True) + level).expand(-1, num_beams),
        past_key_values=cache,
        use_cache=True,
    )
    return hidden, state._replace(ancestors=ancestors)


def rank_items(trie: SidTrie, beams: Beams, width: int, allowed: Bool[Tensor, "B N"] | None = None) -> Ranking:
    """Turn leaves into items; a leaf that several items share gives each an equal part of its probability."""
    leaf = beams.node.clamp(min=0)
    count = torch.where(beams.node >= 0, trie.item_end[leaf] - trie.item_start[leaf], 0)
    if allowed is None and bool((count <= 1).all()):
        return Ranking(torch.where(beams.node >= 0, trie.item_start[leaf], -1)[:, :width], beams.score[:, :width])
    most = int(count.max())
    offset = torch.arange(most, device=leaf.device)
    item = trie.item_start[leaf][..., None] + offset
    present = offset < count[..., None]
    item = torch.where(present, item, 0)
    if allowed is not None:
        rows = torch.arange(len(item), device=item.device)[:, None, None]
        present = present & allowed.to(item.device)[rows, item]
    score = torch.where(present, (beams.score - count.clamp(min=1).log())[..., None], -torch.inf).flatten(1)
    order = torch.sort(score, dim=1, descending=True, stable=True)
    chosen = torch.where(order.values > -torch.inf, item.flatten(1).gather(1, order.indices), -1)
    return Ranking(chosen[:, :width], order.values[:, :width])


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
    allowed: Bool[Tensor, "B N"] | None = None,
) -> list[Recommendation]:
    """Return the best min(k, items allowed) items after each prompt, with their log-probabilities."""
    if k > beam_width:
        raise ValueError(f"recommend: beam_width ({beam_width}) must be at least k ({k})")
    beams = beam_search(policy, trie, prompts, beam_width, allowed)
    ranking = rank_items(trie, beams, k, allowed)
    results = []
    for index, score in zip(ranking.item_index.cpu(), ranking.score.cpu(), strict=True):
        places = index[index >= 0].numpy()
        results.append(Recommendation(trie.item_ids.take(places).to_pylist(), score[: len(places)].tolist(), places))
    return results
