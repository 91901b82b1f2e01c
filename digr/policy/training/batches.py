"""Token sequences in flat arrays, and batches of them within a token budget, with little padding."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from digr.policy.prompts import read_prompts
from digr.policy.vocabulary import find_sid_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POOL_BATCHES = 16
"""Number of batches whose sequences are sorted by length together: large saves padding, small keeps batches mixed."""


class TokenSequences(NamedTuple):
    """Concatenated token sequences: sequence i is `tokens[offsets[i]:offsets[i + 1]]`, prompt first."""

    tokens: Int[np.ndarray, " P"]
    offsets: Int[np.ndarray, " S1"]
    prompt_lengths: Int[np.ndarray, " S"]
    rates: Float[np.ndarray, " S"]
    """How often each sequence is seen per epoch; 0.5 means every second epoch on average."""
    num_cut_prompts: int = 0
    """Number of prompts that lost their oldest items."""
    num_cut_completions: int = 0
    """Number of completions in words that lost their end."""

    @property
    def lengths(self) -> Int[np.ndarray, " S"]:
        """Tokens of each sequence."""
        return np.diff(self.offsets)


class SequenceBatch(NamedTuple):
    """Right-padded sequences."""

    input_ids: Int[Tensor, "B T"]
    attention_mask: Bool[Tensor, "B T"]
    completion_mask: Bool[Tensor, "B T"]


class Texts(NamedTuple):
    """Some training examples as text."""

    prompts: list[str]
    completions: list[str]
    rates: Sequence[float] | None = None
    """How often each is seen per epoch; None means once."""


def pack_sequences(tokenizer: "PreTrainedTokenizerBase", texts: Iterable[Texts], max_tokens: int) -> TokenSequences:
    """Tokenise batches of examples into flat arrays; prompts that are too long are cut, see `policy.prompts`.

    A completion in words keeps its first `max_tokens` // 2 tokens; one of semantic IDs is never cut.

    Raises:
        ValueError: a sequence is still longer than `max_tokens`, or there is none.
    """
    num_levels, longest = len(find_sid_tokens(tokenizer, len(tokenizer)).level_sizes), max_tokens // 2
    num_cut_prompts = num_cut_completions = 0

    def read(prompts: list[str]) -> list[list[int]]:
        return tokenizer(prompts, verbose=False)["input_ids"]

    tokens, lengths, prompt_lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    rates = [np.zeros(0)]
    for batch in texts:
        tails = tokenizer(batch.completions, add_special_tokens=False, verbose=False)["input_ids"]
        for row, completion in enumerate(batch.completions):
            if len(tails[row]) > longest and "<a_" not in completion:
                tails[row] = tails[row][:longest]
                num_cut_completions += 1
        heads, num_cut = read_prompts(batch.prompts, read, max_tokens, num_levels, [len(tail) for tail in tails])
        num_cut_prompts += num_cut
        rows = [head + tail for head, tail in zip(heads, tails, strict=True)]
        tokens.append(np.fromiter((token for row in rows for token in row), np.int32))
        lengths.append(np.fromiter(map(len, rows), np.int64, len(rows)))
        prompt_lengths.append(np.fromiter(map(len, heads), np.int64, len(heads)))
        rates.append(np.ones(len(rows)) if batch.rates is None else np.asarray(batch.rates, float))
    sizes = np.concatenate(lengths)
    if not len(sizes):
        raise ValueError("policy: no training sequences; histories needs rows of split train")
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return TokenSequences(
        np.concatenate(tokens),
        offsets,
        np.concatenate(prompt_lengths),
        np.concatenate(rates),
        num_cut_prompts,
        num_cut_completions,
    )


def draw_by_rate(rates: Float[np.ndarray, " S"], rng: np.random.Generator) -> Int[np.ndarray, " R"]:
    """Choose the sequences of an epoch: the integer part of a rate always, its fraction at random.

    Fractions are drawn as one systematic sample, so that every epoch has the same number of sequences, to within one.
    Otherwise the mix of tasks, and so the loss, would vary between epochs.
    """
    if (rates == 1).all():
        return np.arange(len(rates))
    whole, order = np.floor(rates).astype(np.int64), rng.permutation(len(rates))
    marks = np.floor(np.cumsum((rates - whole)[order]) + rng.random()).astype(np.int64)
    extra = np.zeros(len(rates), np.int64)
    extra[order] = np.diff(marks, prepend=0)
    return np.repeat(np.arange(len(rates)), whole + extra)


def plan_batches(lengths: Int[np.ndarray, " S"], max_batch_tokens: int, rng: np.random.Generator) -> list[Int[np.ndarray, " B"]]:
    """Put every sequence into a batch, in random order, so that a batch's rows times its longest row fit the budget.

    A sequence longer than the budget gets a batch of its own.
    """
    order = rng.permutation(len(lengths))
    pools = np.cumsum(lengths[order]) // (POOL_BATCHES * max_batch_tokens)
    order = order[np.lexsort((lengths[order], pools))]
    pool_ends = np.searchsorted(pools, pools, side="right")
    batches, start = [], 0
    while start < len(order):
        window = lengths[order[start : min(int(pool_ends[start]), start + max_batch_tokens)]]
        area = window * np.arange(1, len(window) + 1)
        count = max(1, int(np.searchsorted(area, max_batch_tokens, side="right")))
        batches.append(order[start : start + count])
        start += count
    return [batches[index] for index in rng.permutation(len(batches))]


def make_batch(sequences: TokenSequences, rows: Int[np.ndarray, " B"], pad_id: int) -> SequenceBatch:
    """Gather and pad the sequences of a batch."""
    lengths = sequences.lengths[rows]
    place = np.arange(int(lengths.max()))
    real = place < lengths[:, None]
    source = np.where(real, sequences.offsets[rows][:, None] + place, 0)
    tokens = np.where(real, sequences.tokens[source], pad_id).astype(np.int64)
    completion = real & (place >= sequences.prompt_lengths[rows][:, None])
    return SequenceBatch(torch.from_numpy(tokens), torch.from_numpy(real), torch.from_numpy(completion))
