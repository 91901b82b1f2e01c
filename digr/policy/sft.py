"""Supervised fine-tuning: every position of every sequence, normalised on the trie, in batches of equal token budgets."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from digr.config.policy import SftConfig
from digr.policy.engine import Engine, learning_rate
from digr.policy.validation import (
    SCORE,
    Decoding,
    Progress,
    Report,
    Save,
    ValidExamples,
    keep_if_better,
    load_state,
    policy_of,
    save_state,
    validate,
)
from digr.sids.trie import SidTrie

POOL_BATCHES = 16
"""Batches whose sequences are sorted by length together: enough to save padding, few enough to keep batches mixed."""


class Sequences(NamedTuple):
    """Token sequences one behind the other: sequence i is `tokens[offsets[i]:offsets[i + 1]]`, prompt first."""

    tokens: Int[np.ndarray, " P"]
    offsets: Int[np.ndarray, " S1"]
    prompt_lengths: Int[np.ndarray, " S"]

    @property
    def lengths(self) -> Int[np.ndarray, " S"]:
        """Tokens of each sequence."""
        return np.diff(self.offsets)


class SequenceBatch(NamedTuple):
    """Right-padded sequences."""

    input_ids: Int[Tensor, "B T"]
    attention_mask: Bool[Tensor, "B T"]
    completion_mask: Bool[Tensor, "B T"]


def pack_sequences(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[tuple[list[str], list[str]]], max_tokens: int
) -> Sequences:
    """Tokenise batches of (prompts, completions) into flat arrays.

    Raises:
        ValueError: a sequence is longer than `max_tokens`, or there is none.
    """
    tokens, lengths, prompt_lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for prompts, completions in texts:
        heads = tokenizer(prompts)["input_ids"]
        tails = tokenizer(completions, add_special_tokens=False)["input_ids"]
        rows = [head + tail for head, tail in zip(heads, tails, strict=True)]
        tokens.append(np.fromiter((token for row in rows for token in row), np.int32))
        lengths.append(np.fromiter(map(len, rows), np.int64, len(rows)))
        prompt_lengths.append(np.fromiter(map(len, heads), np.int64, len(heads)))
    sizes = np.concatenate(lengths)
    if not len(sizes):
        raise ValueError("policy: no training sequences; histories needs rows of split train")
    if int(sizes.max()) > max_tokens:
        raise ValueError(
            f"policy.max_tokens: a training sequence has {int(sizes.max())} tokens, allowed are {max_tokens}; "
            f"raise policy.max_tokens or lower data.max_history"
        )
    return Sequences(np.concatenate(tokens), np.concatenate([[0], np.cumsum(sizes)]), np.concatenate(prompt_lengths))


def plan_batches(lengths: Int[np.ndarray, " S"], max_batch_tokens: int, rng: np.random.Generator) -> list[Int[np.ndarray, " B"]]:
    """Put every sequence into one batch, in random order, so that a batch's rows times its longest row fit the budget.

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


def make_batch(sequences: Sequences, rows: Int[np.ndarray, " B"], pad_id: int) -> SequenceBatch:
    """Gather and pad some sequences."""
    lengths = sequences.lengths[rows]
    place = np.arange(int(lengths.max()))
    real = place < lengths[:, None]
    source = np.where(real, sequences.offsets[rows][:, None] + place, 0)
    tokens = np.where(real, sequences.tokens[source], pad_id).astype(np.int64)
    completion = real & (place >= sequences.prompt_lengths[rows][:, None])
    return SequenceBatch(torch.from_numpy(tokens), torch.from_numpy(real), torch.from_numpy(completion))


def train_sft(
    engine: Engine,
    trie: SidTrie,
    sequences: Sequences,
    valid: ValidExamples,
    config: SftConfig,
    *,
    decoding: Decoding,
    seed: int,
    best_folder: Path,
    resume: Path | None,
    save: Save,
    report: Report,
) -> Progress:
    """Train the engine's policy; the best weights on validation end in `best_folder`.

    Validation and checkpoints come every `eval_every_epochs` epochs and at the end; between them `report` gets one line
    per epoch. Workers may hold different numbers of sequences: all take as many steps as the one with the most batches,
    the others going over their first batches again.

    Args:
        sequences: this worker's share.
        valid: this worker's share.
        decoding: of validation.
        best_folder: empty local folder to be made by the first worker; each checkpoint has a copy.
        resume: folder of the checkpoint to go on from.
        save: called after each validation with the metrics and a writer of this worker's checkpoint files.
    """
    progress = load_state(resume, engine, best_folder) if resume else Progress()
    while not progress.done:
        record = _train_epoch(engine, trie, sequences, config, progress, seed)
        progress.position += 1
        last = progress.position >= config.epochs
        if not last and progress.position % config.eval_every_epochs:
            progress.records.append(record)
            report(record)
            continue
        start = time.monotonic()
        record |= validate(engine, trie, valid, decoding)
        keep_if_better(engine, progress, record[SCORE], best_folder)
        progress.done = last or progress.stale >= config.patience
        record |= {"best": progress.best, "valid_seconds": time.monotonic() - start}
        progress.records.append(record)
        save(record, lambda folder: save_state(folder, engine, progress, best_folder))
    return progress


def _train_epoch(
    engine: Engine, trie: SidTrie, sequences: Sequences, config: SftConfig, progress: Progress, seed: int
) -> dict[str, float]:
    start, policy = time.monotonic(), policy_of(engine)
    rng = np.random.default_rng([seed, progress.position, engine.rank])
    plan = plan_batches(sequences.lengths, max(config.batch_tokens // engine.world_size, 1), rng)
    counts = torch.zeros(engine.world_size, dtype=torch.float64)
    counts[engine.rank] = len(plan)
    num_steps = int(engine.total(counts).max())
    plan = [plan[index % len(plan)] for index in range(num_steps)]
    targets = sequences.lengths - sequences.prompt_lengths
    # a step's loss is the mean over the completion tokens of all workers, which hold unequal numbers of them
    step_targets = engine.total(torch.tensor([float(targets[rows].sum()) for rows in plan], dtype=torch.float64)).tolist()
    loss_sum = torch.zeros((), dtype=torch.float64, device=policy.device)
    padded = lr = 0.0
    policy.train()
    for index, rows in enumerate(plan):
        batch = SequenceBatch(*(part.to(policy.device) for part in make_batch(sequences, rows, policy.tokenizer.pad_token_id)))
        log_probs = engine(batch.input_ids, batch.attention_mask, batch.completion_mask, trie)
        loss = -log_probs.sum() / step_targets[index] * engine.world_size
        engine.backward(loss)
        lr = learning_rate((progress.position + (index + 1) / num_steps) / config.epochs, config.lr, config.warmup_rate)
        engine.step(lr)
        loss_sum += -log_probs.detach().double().sum()
        padded += batch.input_ids.numel()
    real = float(sum(sequences.lengths[rows].sum() for rows in plan))
    sums = engine.total(torch.tensor([float(loss_sum), real, padded], dtype=torch.float64)).tolist()
    progress.step += num_steps
    seconds = time.monotonic() - start
    return {
        "epoch": progress.position + 1,
        "step": progress.step,
        "loss": sums[0] / sum(step_targets),
        "lr": lr,
        "tokens_per_second": sums[1] / seconds,
        "padding_rate": 1 - sums[1] / sums[2],
        "seconds": seconds,
    }
