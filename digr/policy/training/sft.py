"""Supervised fine-tuning: every position of every sequence, normalised on the trie, in batches of equal token budgets."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from digr.config.policy import SftConfig
from digr.policy.training.batches import SequenceBatch, TokenSequences, draw_by_rate, make_batch, plan_batches
from digr.policy.training.engine import Engine, learning_rate, policy_of
from digr.policy.training.validation import (
    SCORE,
    Decoding,
    Progress,
    Report,
    Save,
    ValidExamples,
    load_state,
    save_if_better,
    save_state,
    validate,
)
from digr.sids.trie import SidTrie

NUM_CUT = ("num_cut_prompts", "num_cut_completions")
"""Metrics of texts that were cut because they were too long, over all workers."""


class _Epoch(NamedTuple):
    """The batches of one epoch."""

    batches: list[Int[np.ndarray, " B"]]
    """This worker's batches, `accumulate` of them per step."""
    step_targets: list[float]
    """Completion tokens of all workers in each step."""


def train_sft(
    engine: Engine,
    trie: SidTrie,
    sequences: TokenSequences,
    valid: ValidExamples,
    config: SftConfig,
    *,
    decoding: Decoding,
    seed: int,
    best_folder: Path,
    resume: Path | None = None,
    save: Save = lambda record, write: None,
    report: Report = lambda record: None,
) -> Progress:
    """Train the engine's policy; write the best weights on validation to `best_folder`.

    Validation and checkpoints happen every `eval_every_epochs` epochs and at the end, checkpoints also every
    `checkpoint_every_steps` steps; between them `report` gets one line per epoch. Workers may hold different numbers of
    sequences: all take as many steps as the one with the most batches, and the others repeat their first batches.

    With the same number of workers, a resumed training continues at the checkpoint's step and gives the same weights as an
    uninterrupted one. With another number it continues at the same step of its epoch, but with other batches.

    Args:
        sequences: this worker's share.
        valid: this worker's share.
        decoding: decoding for validation.
        best_folder: local folder that the first worker creates; each checkpoint has a copy.
        resume: folder of the checkpoint to resume.
        save: called for each checkpoint with the metrics and a writer of this worker's files.
    """
    progress = load_state(resume, engine, best_folder) if resume else Progress()
    own = torch.tensor([sequences.num_cut_prompts, sequences.num_cut_completions], dtype=torch.float64)
    num_cut = dict(zip(NUM_CUT, map(int, engine.total(own)), strict=True))

    def save_checkpoint(record: dict[str, Any]) -> None:
        progress.records.append(record)
        save(record, lambda folder: save_state(folder, engine, progress, best_folder))

    while not progress.done:
        record = _train_epoch(engine, trie, sequences, config, progress, seed=seed, save_checkpoint=save_checkpoint)
        progress.position, progress.epoch_step, progress.epoch_sums = progress.position + 1, 0, []
        last = progress.position >= config.epochs
        if not last and progress.position % config.eval_every_epochs:
            progress.records.append(record)
            report(record)
            continue
        start = time.monotonic()
        record |= validate(engine, trie, valid, decoding) | num_cut
        save_if_better(engine, progress, record[SCORE], best_folder)
        progress.done = last or progress.stale >= config.patience
        save_checkpoint(record | {"best": progress.best, "valid_seconds": time.monotonic() - start})
    return progress


def _plan_epoch(engine: Engine, sequences: TokenSequences, config: SftConfig, *, epoch: int, seed: int) -> _Epoch:
    rng = np.random.default_rng([seed, epoch, engine.rank])
    drawn = draw_by_rate(sequences.rates, rng)
    budget = max(config.batch_tokens // (engine.world_size * config.accumulate), 1)
    plan = [drawn[rows] for rows in plan_batches(sequences.lengths[drawn], budget, rng)]
    counts = torch.zeros(engine.world_size, dtype=torch.float64)
    counts[engine.rank] = len(plan)
    num_steps = -(-int(engine.total(counts).max()) // config.accumulate)
    plan = [plan[index % len(plan)] for index in range(num_steps * config.accumulate)]
    targets = sequences.lengths - sequences.prompt_lengths
    own = torch.tensor([float(targets[rows].sum()) for rows in plan], dtype=torch.float64)
    return _Epoch(plan, engine.total(own.reshape(num_steps, -1).sum(1)).tolist())


def _train_epoch(
    engine: Engine,
    trie: SidTrie,
    sequences: TokenSequences,
    config: SftConfig,
    progress: Progress,
    *,
    seed: int,
    save_checkpoint: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Take the steps of an epoch that `progress` has not done yet."""
    start, policy = time.monotonic(), policy_of(engine)
    epoch = _plan_epoch(engine, sequences, config, epoch=progress.position, seed=seed)
    num_steps, rate = len(epoch.step_targets), 0.0
    sums = torch.zeros(4, dtype=torch.float64, device=policy.device)
    if progress.epoch_sums and engine.rank == 0:
        sums += torch.tensor(progress.epoch_sums[:4], dtype=torch.float64, device=policy.device)
    first, before = progress.step - progress.epoch_step, progress.epoch_sums[4] if progress.epoch_sums else 0.0
    policy.train()

    def summary() -> list[float]:
        return [*engine.total(sums).tolist(), before + time.monotonic() - start]

    for step in range(min(progress.epoch_step, num_steps), num_steps):
        rows = epoch.batches[step * config.accumulate : (step + 1) * config.accumulate]
        sums += _accumulate(engine, trie, sequences, rows, epoch.step_targets[step])
        rate = learning_rate((progress.position + (step + 1) / num_steps) / config.epochs, config.lr, config.warmup_rate)
        engine.step(rate)
        progress.step = first + step + 1
        if config.checkpoint_every_steps and progress.step % config.checkpoint_every_steps == 0 and step + 1 < num_steps:
            progress.epoch_step, progress.epoch_sums = step + 1, summary()
            save_checkpoint(_record(progress.position + (step + 1) / num_steps, progress.step, progress.epoch_sums, rate))
    return _record(progress.position + 1, progress.step, summary(), rate)


def _accumulate(
    engine: Engine, trie: SidTrie, sequences: TokenSequences, batches: list[Int[np.ndarray, " B"]], num_targets: float
) -> Float[Tensor, " 4"]:
    """Add the gradients of a step's batches; return the loss sum, completion tokens, tokens and padded tokens.

    Args:
        num_targets: completion tokens of all workers in the step; the loss is the mean over them.
    """
    policy = policy_of(engine)
    sums = torch.zeros(4, dtype=torch.float64, device=policy.device)
    for rows in batches:
        batch = SequenceBatch(*(part.to(policy.device) for part in make_batch(sequences, rows, policy.tokenizer.pad_token_id)))
        log_probs = engine(batch.input_ids, batch.attention_mask, batch.completion_mask, trie)
        engine.backward(-log_probs.sum() / num_targets * engine.world_size)
        counts = torch.stack([batch.completion_mask.sum(), batch.attention_mask.sum()]).double()
        sums += torch.cat([-log_probs.detach().double().sum()[None], counts, counts.new_tensor([batch.input_ids.numel()])])
    return sums


def _record(epoch: float, step: int, sums: list[float], rate: float) -> dict[str, Any]:
    """Return the metrics of an epoch so far from sums over all workers."""
    loss, targets, real, padded, seconds = sums
    return {
        "epoch": epoch,
        "step": step,
        "loss": loss / targets,
        "lr": rate,
        "tokens_per_second": real / seconds,
        "padding_rate": 1 - real / padded,
        "seconds": seconds,
    }
