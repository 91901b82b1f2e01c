"""Choose the beams of a level: extend every unsettled beam by each code that the trie allows, and keep the best.

Beams with equal scores keep the order of their parents, then of their codes, in any batch; settled beams come after growing
ones. On a CPU with Numba this is one compiled pass (`cpu.choose`); on other devices, and for sampled beams, PyTorch.
"""

from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from digr.sids.filters import ItemFilter
from digr.sids.trie import ROOT, SidTrie

COMPILES = all(find_spec(name) for name in ("numba", "scipy"))
"""Whether the loops of `cpu` can be compiled (Numba needs SciPy for matrix products); PyTorch gives the same lists."""


class Frontier(NamedTuple):
    """The beams after a level, best first."""

    node: Int[Tensor, "B M"]
    """Node at the end of each beam; -1 if the request has fewer beams."""
    score: Float[Tensor, "B M"]
    """Log-probability of the codes so far; -inf if the request has fewer beams."""
    key: Float[Tensor, "B M"]
    """Key by which beams are kept: the score, or in a sampled search the perturbed score."""
    is_open: Bool[Tensor, "B M"]
    """Whether more than one SID lies below the node; otherwise the beam is settled."""
    code: Int[Tensor, "B Q"]
    """Newest code of the open beams, in order; 0 if the request has fewer."""
    branch: Int[Tensor, "B Q"]
    """Index of each open beam's parent among the open beams of the previous level."""


def first_beams(trie: SidTrie, num_rows: int) -> Frontier:
    """Return the beams before the first level: the root for each request."""
    device, is_open = trie.codes.device, bool(trie.node_open[ROOT])
    root, zero = torch.full((num_rows, 1), ROOT, device=device), torch.zeros(num_rows, 1, device=device)
    width = int(is_open)
    return Frontier(root, zero, zero, torch.full((num_rows, 1), is_open, device=device), root[:, :width], root[:, :width])


class Kept(NamedTuple):
    """The beams that a level keeps, and the best score that it dropped."""

    beams: Frontier
    dropped: Float[Tensor, " B"]
    """Highest score of the dropped beams, an upper bound for all SIDs below them; -inf if none was dropped."""


def keep_best(beams: Frontier, width: int) -> Kept:
    """Keep the best `width` of at most `width` + 1 beams."""
    if beams.node.shape[1] <= width:
        return Kept(beams, torch.full((len(beams.node),), -torch.inf, device=beams.score.device))
    is_open = beams.is_open[:, :width]
    num_open = int(is_open.sum(1).max())
    node, score, key = (column[:, :width] for column in (beams.node, beams.score, beams.key))
    kept = Frontier(node, score, key, is_open, beams.code[:, :num_open], beams.branch[:, :num_open])
    return Kept(kept, beams.score[:, width])


def next_beams(
    trie: SidTrie,
    beams: Frontier,
    logits: Float[Tensor, "B Q K"],
    width: int,
    *,
    chosen: ItemFilter | None = None,
    generator: torch.Generator | None = None,
) -> Frontier:
    """Extend every unsettled beam by one code, and keep the best beams.

    Args:
        logits: logits of the level's codes after each open beam.
        width: most beams kept.
        chosen: items that may be returned. Does not change scores, which are normalised before filtering.
        generator: samples without replacement, see `beam_search`.
    """
    if COMPILES and generator is None and logits.device.type == "cpu":
        return _next_compiled(trie, beams, logits, width, chosen)
    return _next_in_torch(trie, beams, logits, width, chosen=chosen, generator=generator)


def _next_compiled(
    trie: SidTrie, beams: Frontier, logits: Float[Tensor, "B Q K"], width: int, chosen: ItemFilter | None
) -> Frontier:
    from digr.policy.decoding.cpu import choose  # Numba takes half a second to import

    shape, words, before = (len(logits), width), np.empty((len(logits), 0), np.int64), np.empty((len(logits), 0), np.int32)
    if chosen is not None:
        words, before = chosen.words.numpy(), chosen.before.numpy()
    node, code, branch = np.empty(shape, np.int64), np.empty(shape, np.int64), np.empty(shape, np.int64)
    score, is_open = np.empty(shape, np.float32), np.empty(shape, np.bool_)
    nodes = trie.first_child, trie.num_children, trie.node_code, trie.node_open, *trie.ranges
    given = (one.numpy() for one in (logits, beams.node, beams.score, beams.is_open, *nodes))
    most, most_open = choose(*given, words, before, node, score, is_open, code, branch)
    scores = torch.from_numpy(score[:, :most])
    return Frontier(
        node=torch.from_numpy(node[:, :most]),
        score=scores,
        key=scores,
        is_open=torch.from_numpy(is_open[:, :most]),
        code=torch.from_numpy(code[:, :most_open]),
        branch=torch.from_numpy(branch[:, :most_open]),
    )


def _next_in_torch(
    trie: SidTrie,
    beams: Frontier,
    logits: Float[Tensor, "B Q K"],
    width: int,
    *,
    chosen: ItemFilter | None,
    generator: torch.Generator | None,
) -> Frontier:
    place = torch.argsort(~beams.is_open, dim=1, stable=True)[:, : beams.code.shape[1]]
    parent = torch.where(beams.is_open.gather(1, place), beams.node.gather(1, place), -1)
    first, count = trie.first_child.take(parent), trie.num_children.take(parent)  # -1 reads the last node, a leaf
    most = int(count.max())
    child = first[..., None] + torch.arange(most, device=first.device)
    exists = child < (first + count)[..., None]
    codes = torch.where(exists, trie.node_code.take(torch.where(exists, child, ROOT)), 0).long()
    log_probs = torch.log_softmax(torch.where(exists, logits.gather(-1, codes), -torch.inf), -1)
    if chosen is not None:
        exists = exists & _with_allowed_items(trie, child, exists, chosen)
    grown = torch.where(exists, log_probs + beams.score.gather(1, place)[..., None], -torch.inf)
    scores, nodes = grown.flatten(1), child.flatten(1)
    keys = scores if generator is None else _perturb(grown, beams.key.gather(1, place), generator).flatten(1)
    # settled beams come after growing ones
    scores, keys = (
        torch.cat([new, torch.where(beams.is_open, -torch.inf, old)], 1)
        for new, old in ((scores, beams.score), (keys, beams.key))
    )
    best = _largest(keys, width)
    score = scores.gather(1, best)
    node = torch.where(score > -torch.inf, torch.cat([nodes, beams.node], 1).gather(1, best), -1)
    is_open = trie.is_open(node)
    order = torch.argsort(~is_open, dim=1, stable=True)[:, : int(is_open.sum(1).max())]
    branch = (best // most).gather(1, order).clamp(max=parent.shape[1] - 1)
    code = torch.where(is_open.gather(1, order), trie.node_code[node.gather(1, order)], 0).long()
    return Frontier(node, score, keys.gather(1, best), is_open, code, branch)


def _with_allowed_items(
    trie: SidTrie, child: Int[Tensor, "B Q C"], exists: Bool[Tensor, "B Q C"], chosen: ItemFilter
) -> Bool[Tensor, "B Q C"]:
    """Mark the children with an allowed item below."""
    node = torch.where(exists, child, ROOT)
    row = torch.arange(len(node), device=node.device)[:, None, None].expand_as(node)
    found = torch.zeros_like(exists)
    for start, end in (trie.ranges[:2], trie.ranges[2:]):
        if len(start):
            found |= chosen.num_before(row, end[node]) > chosen.num_before(row, start[node])
    return found


def _largest(keys: Float[Tensor, "B C"], count: int) -> Int[Tensor, "B M"]:
    """Return the places of the largest keys, largest first, ties in their order (`topk` alone does not guarantee this).

    Keys are at most 0, like log-probabilities, so the bits of their absolute values sort like integers.
    """
    size = keys.abs().view(torch.int32).long() << 32
    place = torch.arange(keys.shape[1], device=keys.device)
    return (size | place).topk(min(count, keys.shape[1]), dim=1, largest=False).values & 0xFFFFFFFF


def _perturb(
    scores: Float[Tensor, "B Q C"], parent_key: Float[Tensor, "B Q"], generator: torch.Generator
) -> Float[Tensor, "B Q C"]:
    """Draw Gumbel keys of the children so that the largest equals their parent's key (Kool et al. 2019, equation 21)."""
    noise = torch.empty_like(scores).exponential_(generator=generator).log().neg()
    drawn, parent = scores + noise, parent_key[..., None]
    below = drawn - drawn.amax(-1, keepdim=True).clamp(min=torch.finfo(drawn.dtype).min)
    gap = parent - drawn + torch.log(-torch.expm1(below))
    conditioned = parent - gap.clamp(min=0) - torch.log1p(torch.exp(-gap.abs()))
    return torch.where(drawn > -torch.inf, conditioned, -torch.inf)
