"""Training of the interest classifier's heads on mined interests alone (RLDI).

In each step, every mined interest is a negative for all other texts of the step (in-batch negatives). This is cheaper than a
cross-encoder on drawn pairs, and learns more from each step.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from digr.config.interests import ClassifierConfig
from digr.models.encoders import Encode
from digr.rewards.classifier import EncodedPairs, InterestClassifier, MatchHead, encode_pairs, folds_of
from digr.rewards.pairs import NEAR_DUPLICATE, blur, own_phrases

NUM_GENERIC, GENERIC_PER_STEP = 500, 32
"""Number of blurred phrases that are drawn, and how many of them are negatives for every text of a step."""


def fit_classifier(
    encode: Encode,
    pairs: pa.Table,
    config: ClassifierConfig,
    *,
    rank: int = 0,
    num_workers: int = 1,
    device: str = "cpu",
    wrap: Callable[[nn.Module], nn.Module] = lambda head: head,
    rng: np.random.Generator,
    report: Callable[[Mapping[str, Any]], None] = lambda metrics: None,
) -> InterestClassifier:
    """Train one head per fold, each on the pairs of the other folds' items; no calibration yet.

    Args:
        pairs: the `train` table of `pair_tables`; this worker encodes only its share.
        wrap: turns a head into a distributed one.
        report: called after each epoch with head, epoch and mean loss.
    """
    fold = folds_of(pairs["item_id"].to_pylist(), config.folds)
    parts = [training_rows(fold, left_out, rank, num_workers) for left_out in range(config.folds)]
    mine = np.unique(np.concatenate(parts))
    mined = encode_pairs(encode, *(pairs[name].take(mine).to_pylist() for name in ("phrase", "text")))
    phrases = pairs["phrase"].to_pylist()
    generic = torch.from_numpy(encode(sorted(set(blur(rng.choice(phrases, NUM_GENERIC).tolist(), phrases, rng)))))
    heads = nn.ModuleList([MatchHead(generic.shape[1]) for _ in parts]).to(device)
    for number, (head, rows) in enumerate(zip(heads, parts, strict=True), 1):

        def report_epoch(metrics: Mapping[str, Any], number: int = number) -> None:
            report({"head": number} | dict(metrics))

        fit_head(
            wrap(head),
            mined.take(np.searchsorted(mine, rows)),
            generic,
            config,
            num_workers=num_workers,
            rng=rng,
            report=report_epoch,
        )
    return InterestClassifier(encode, heads.eval())


def training_rows(fold: Int[np.ndarray, " P"], left_out: int, rank: int, num_workers: int) -> Int[np.ndarray, " B"]:
    """Return the pairs on which a worker trains a head: its share of all folds but the one left out.

    Neighbouring pairs, which share items, go to the same worker, so that it encodes fewer texts. All workers get the same
    number of pairs; the last worker's wrap around.
    """
    rows = np.flatnonzero(fold != left_out)
    return np.resize(rows, -(-len(rows) // num_workers) * num_workers).reshape(num_workers, -1)[rank]


def fit_head(
    head: nn.Module,
    mined: EncodedPairs,
    generic: Float[Tensor, "G D"],
    config: ClassifierConfig,
    *,
    num_workers: int = 1,
    rng: np.random.Generator,
    report: Callable[[Mapping[str, Any]], None] = lambda metrics: None,
) -> None:
    """Train the head in place on this worker's mined pairs: symmetric contrastive loss (CLIP, 2103.00020), AdamW, rate to 0.

    A text must find its interest among the step's interests and some generic phrases; an interest must find its text among
    the step's texts. Near duplicates of a text's own interests are masked, because they are likely true of it.
    Every worker must get the same number of pairs, otherwise the workers' collectives wait for each other for ever.

    Args:
        head: a `MatchHead`, or a distributed wrapper of one.
        mined: pairs of an interest and the text that it was mined from.
        generic: vectors of phrases that are true of any item.
        num_workers: workers that share a step; `config.batch_size` is the total over all of them.
        report: called after each epoch with epoch and mean loss.
    """
    device = next(head.parameters()).device
    batch_size = max(1, config.batch_size // num_workers)
    num_steps = config.epochs * -(-len(mined.text_index) // batch_size)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1.0 / num_steps, total_iters=num_steps)
    own = torch.from_numpy(own_phrases(mined.text_index, mined.phrase_index, len(mined.texts)))
    head.train()
    for epoch in range(1, config.epochs + 1):
        order, losses = rng.permutation(len(mined.text_index)), []
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            texts, phrases = torch.from_numpy(mined.text_index[rows]), mined.phrases[mined.phrase_index[rows]]
            left_out = _likely_true(mined.phrases, own[texts], phrases)
            blurred = generic[torch.from_numpy(rng.integers(0, len(generic), GENERIC_PER_STEP))]
            logits = head(torch.cat([phrases, blurred]).to(device), mined.texts[texts].to(device))
            loss = _contrastive_loss(logits, left_out.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        report({"epoch": epoch, "loss": float(np.mean(losses))})
    head.eval()


def _likely_true(vectors: Float[Tensor, "U D"], own: Int[Tensor, "B R"], phrases: Float[Tensor, "B D"]) -> Bool[Tensor, "B B"]:
    """Return whether each phrase nearly duplicates an own interest of each text, without being the text's own pair."""
    cosine = torch.einsum("brd,pd->brp", vectors[own], phrases).masked_fill(own[..., None] < 0, -1).amax(1)
    return (cosine >= NEAR_DUPLICATE).fill_diagonal_(False)


def _contrastive_loss(logits: Float[Tensor, "B P"], left_out: Bool[Tensor, "B B"]) -> Float[Tensor, ""]:
    pairs = logits[:, : len(logits)].masked_fill(left_out, -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    return cross_entropy(torch.cat([pairs, logits[:, len(logits) :]], dim=1), target) + cross_entropy(pairs.T, target)
