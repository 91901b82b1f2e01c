"""Constrained beam search: takes prompts, returns distinct items of the catalogue, best first.

The prompt is encoded once; the beams of a request are branches after it, so they share its keys and values. A beam with only
one SID below it is settled: its remaining codes have probability 1, so the model does not compute them.
A filter on items only removes codes, so a search returns at least min(beam width, items allowed) distinct items. Beams with
equal scores keep the order of their parents, then of their codes, in any batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from digr.policy.decoding.choosing import first_beams, keep_best, next_beams
from digr.policy.decoding.contexts import ContextCache, encode
from digr.policy.model import SidPolicy
from digr.sids.filters import ItemFilter, item_filter, pack_mask
from digr.sids.trie import SidTrie


class Beams(NamedTuple):
    """Ranked SIDs, best first."""

    node: Int[Tensor, "B M"]
    """Node below which the beam's SID is the only one; -1 if the request has fewer beams."""
    score: Float[Tensor, "B M"]
    """Log-probability of the SID; -inf if the request has fewer beams."""
    dropped: Float[Tensor, " B"]
    """Upper bound of the scores of all SIDs that were not found; -inf if all were found, or in a sampled search."""


class Ranking(NamedTuple):
    """Ranked items, best first."""

    item_index: Int[Tensor, "B M"]
    """Position in `trie.item_ids`; -1 if the request has fewer items."""
    score: Float[Tensor, "B M"]
    """Log-probability of the item; -inf if the request has fewer items."""
    dropped: Float[Tensor, " B"]
    """Upper bound of the scores of all items whose SID was not found."""


@torch.inference_mode()
def beam_search(
    policy: SidPolicy,
    trie: SidTrie,
    prompts: Sequence[str],
    beam_width: int,
    allowed: Bool[Tensor, "B N"] | ItemFilter | None = None,
    *,
    generator: torch.Generator | None = None,
    cache: ContextCache | None = None,
) -> Beams:
    """Find the most probable SIDs after each prompt; with a generator, sample SIDs without replacement.

    A SID is at most as probable as any of its prefixes, so the best dropped prefix bounds every SID that was not found. If the
    last item of a list is at least that probable, the list is exact.

    Args:
        prompts: B prompts, see `vocabulary.history_prompt`.
        beam_width: beams kept per level, M.
        allowed: items (places in trie order) that may be returned, per request; None allows all.
        generator: makes the search stochastic (Gumbel top-k, Kool et al. 2019, arXiv 1903.06059): the beams are M different
            SIDs drawn from the policy without replacement, in the order of drawing. On the policy's device.
        cache: encoded prompts of earlier calls; a cached prefix is not encoded again.

    Raises:
        ValueError: there is no prompt, or a request's filter allows no item.
    """
    if not prompts:
        raise ValueError("beam search: no prompts; pass at least one")
    chosen = _as_filter(allowed, len(prompts), trie)
    context = encode(policy, prompts, cache)
    beams = first_beams(trie, len(prompts))
    hidden = context.last[:, None]
    dropped = torch.full((len(prompts),), -torch.inf, device=trie.codes.device)
    for level in range(trie.num_levels):
        if not beams.code.shape[1]:
            break
        if level:
            hidden = context.steps.branch(policy.token_ids(level - 1)[beams.code], beams.branch, context.length)
        logits = policy.code_logits(hidden, level)
        if generator is not None:
            beams = next_beams(trie, beams, logits, beam_width, chosen=chosen, generator=generator)
            continue
        beams, best = keep_best(next_beams(trie, beams, logits, beam_width + 1, chosen=chosen), beam_width)
        dropped = torch.maximum(dropped, best)
    return Beams(beams.node, beams.score, dropped)


def _as_filter(allowed: Bool[Tensor, "B N"] | ItemFilter | None, num_prompts: int, trie: SidTrie) -> ItemFilter | None:
    if allowed is None:
        return None
    rows, items = (len(allowed.words), allowed.num_items) if isinstance(allowed, ItemFilter) else allowed.shape
    if (rows, items) != (num_prompts, trie.num_items):
        raise ValueError(f"beam search: expected allowed of shape {(num_prompts, trie.num_items)}, found {(rows, items)}")
    chosen = allowed if isinstance(allowed, ItemFilter) else item_filter(pack_mask(allowed), items)
    return chosen.to(trie.codes.device)


def rank_items(trie: SidTrie, beams: Beams, width: int, allowed: Bool[Tensor, "B N"] | ItemFilter | None = None) -> Ranking:
    """Turn SIDs into items; items that share a SID get equal parts of its probability."""
    chosen = _as_filter(allowed, len(beams.node), trie)
    leaf = beams.node.clamp(min=0)
    start, end = trie.item_start.take(leaf), trie.item_end.take(leaf)
    later, num_later = trie.later_items(leaf)
    count = torch.where(beams.node >= 0, end - start + num_later, 0)
    most = int(count.max())
    if chosen is None and most == 1:
        return Ranking(torch.where(beams.node >= 0, start, -1)[:, :width], beams.score[:, :width], beams.dropped)
    offset = torch.arange(most, device=leaf.device)
    item = start[..., None] + offset
    item = torch.where(item < end[..., None], item, later[..., None] + (item - end[..., None]))
    present = offset < count[..., None]
    item = torch.where(present, item, 0)
    if chosen is not None:
        row = torch.arange(len(item), device=item.device)[:, None, None].expand_as(item)
        present = present & chosen.allows(row, item)
    score = torch.where(present, (beams.score - count.clamp(min=1).log())[..., None], -torch.inf).flatten(1)
    order = torch.sort(score, dim=1, descending=True, stable=True)
    ranked = torch.where(order.values > -torch.inf, item.flatten(1).gather(1, order.indices), -1)
    return Ranking(ranked[:, :width], order.values[:, :width], beams.dropped)


class Recommendation(NamedTuple):
    """One request's list."""

    item_ids: list[str]
    scores: list[float]
    places: Int[np.ndarray, " M"]
    """Positions of the items in `trie.item_ids`."""
    dropped: float = float("inf")
    """Upper bound of the log-probability of items that the search did not find; -inf if it found all."""

    def is_proven(self, k: int) -> bool:
        """Return whether the k best are proven to be the k most probable items."""
        return self.dropped <= (self.scores[k - 1] if k <= len(self.scores) else float("-inf"))


def recommend(
    policy: SidPolicy,
    trie: SidTrie,
    prompts: Sequence[str],
    k: int,
    beam_width: int,
    *,
    allowed: Bool[Tensor, "B N"] | ItemFilter | None = None,
    cache: ContextCache | None = None,
    widest: int = 0,
) -> list[Recommendation]:
    """Return the best min(k, items allowed) items after each prompt, with their log-probabilities.

    The other arguments are those of `beam_search`.

    Args:
        k: length of the list.
        widest: while a list is not proven, search again with twice the beam width, up to at most this width.

    Raises:
        ValueError: k is above the beam width, there is no prompt, or a request's filter allows no item.
    """
    if k > beam_width:
        raise ValueError(f"recommend: beam_width ({beam_width}) must be at least k ({k})")
    chosen = _as_filter(allowed, len(prompts), trie)
    ranking = rank_items(trie, beam_search(policy, trie, prompts, beam_width, chosen, cache=cache), k, chosen)
    results = []
    columns = (column.numpy(force=True) for column in ranking)
    for index, score, dropped in zip(*columns, strict=True):
        places = index[index >= 0]
        item_ids = trie.item_ids.take(places).to_pylist()
        results.append(Recommendation(item_ids, score[: len(places)].tolist(), places, float(dropped)))
    open_rows = [row for row, found in enumerate(results) if not found.is_proven(k)]
    if open_rows and 2 * beam_width <= widest:
        some = None if chosen is None else chosen.rows(open_rows)
        again = [prompts[row] for row in open_rows]
        wider = recommend(policy, trie, again, k, 2 * beam_width, allowed=some, cache=cache, widest=widest)
        for row, found in zip(open_rows, wider, strict=True):
            results[row] = found
    return results
