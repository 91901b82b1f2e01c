"""Group relative policy optimisation on the trie, from the SFT policy, under a reward of named terms.

Roll-outs, update and reference all use log-probabilities renormalised on the trie, and no dropout: the policy that is
trained is the policy that is sampled, and the ratio of a roll-out's first update is exactly 1.
"""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from digr.config.policy import GrpoConfig
from digr.policy.decoding.search import Beams
from digr.policy.model import SidPolicy
from digr.policy.training.advantages import Advantages, group_advantages, group_loss
from digr.policy.training.engine import Engine, learning_rate
from digr.policy.training.rollouts import Rollouts, best_rollouts, rollout
from digr.policy.training.validation import (
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

SAMPLED_PROMPTS = 4
SAMPLED_ROLLOUTS = 4


class Prompts(NamedTuple):
    """Training prompts of this worker, each with its own target: equal histories may have different ones."""

    example_ids: pa.StringArray
    prompts: pa.StringArray
    target_index: Int[Tensor, " S"]
    """Position of each target in `trie.item_ids`."""


class Rewards(NamedTuple):
    """Rewards of roll-outs."""

    total: Float[Tensor, "B G"]
    terms: Mapping[str, Float[Tensor, "B G"]]
    """Each named term before its weight."""


class RewardFn(Protocol):
    """Judge roll-outs against the targets of their prompts; without scores a group is ranked best first already."""

    def __call__(self, rollouts: Rollouts, target_index: Int[Tensor, " B"], scores: Float[Tensor, "B G"] | None) -> Rewards:
        """Return a reward for each roll-out."""


def train_grpo(
    engine: Engine,
    reference: SidPolicy,
    trie: SidTrie,
    prompts: Prompts,
    valid: ValidExamples,
    reward_fn: RewardFn,
    config: GrpoConfig,
    *,
    decoding: Decoding,
    seed: int,
    best_folder: Path,
    resume: Path | None = None,
    save: Save = lambda record, write: None,
    report: Report = lambda record: None,
) -> Progress:
    """Train the engine's policy; the best weights on validation end in `best_folder`, the SFT weights if nothing beat them.

    The SFT policy is validated first, as step 0. With `keep = "ndcg"` only a strictly better NDCG@10 replaces it, with
    `keep = "reward"` only a strictly higher mean reward at no lower NDCG@10 than the SFT policy's. Validation and checkpoints
    come every `eval_every_steps` steps and at the end.

    Args:
        engine: holds a copy of the SFT policy.
        reference: the SFT policy, frozen, on the same device.
        prompts: this worker's share.
        valid: this worker's share.
        reward_fn: sees all roll-outs of a prompt, and the target it was drawn with.
        best_folder: empty local folder to be made by the first worker; each checkpoint has a copy.
        resume: folder of the checkpoint to go on from.
        save: called after each validation with the metrics and a writer of this worker's checkpoint files.
        report: called after each step.
    """
    reference.eval().requires_grad_(False)

    def mean_reward(beams: Beams, targets: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        return reward_fn(best_rollouts(trie, beams, config.group_size), targets, None).total.mean(1)

    def check(progress: Progress, record: dict[str, Any]) -> None:
        start = time.monotonic()
        record |= validate(engine, trie, valid, decoding, mean_reward)
        keep_if_better(engine, progress, _score(record, progress, config.keep), best_folder)
        progress.records.append(record)
        record |= {"best": kept_record(progress)[SCORE], "valid_seconds": time.monotonic() - start}
        save(record, lambda folder: save_state(folder, engine, progress, best_folder))

    if resume:
        progress = load_state(resume, engine, best_folder)
    else:
        progress = Progress()
        check(progress, {"step": 0})
    while not progress.done:
        record, sample = train_step(engine, reference, trie, prompts, reward_fn, config, step=progress.step, seed=seed)
        progress.step = progress.position = progress.step + 1
        progress.done = progress.step >= config.steps
        if progress.step % config.eval_every_steps and not progress.done:
            progress.records.append(record)
            report(record)
            continue
        progress.samples += sample
        check(progress, record)
    return progress


def kept_record(progress: Progress) -> dict[str, Any]:
    """Return the metrics of the step whose weights are kept."""
    return next(record for record in progress.records if record["step"] == progress.best_position and SCORE in record)


def _score(record: Mapping[str, float], progress: Progress, keep: Literal["ndcg", "reward"]) -> float:
    """Return what the kept weights are the best in; nothing counts that ranks worse than the SFT policy."""
    if keep == "ndcg":
        return record[SCORE]
    sft = progress.records[0] if progress.records else record
    return record["valid_reward"] if record[SCORE] >= sft[SCORE] else -math.inf


def train_step(
    engine: Engine,
    reference: SidPolicy,
    trie: SidTrie,
    prompts: Prompts,
    reward_fn: RewardFn,
    config: GrpoConfig,
    *,
    step: int,
    seed: int,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Roll out, judge and update once; returns the step's metrics over all workers and a few of this worker's roll-outs."""
    clock, policy = [time.monotonic()], policy_of(engine)
    policy.eval()
    rows = draw_rows(len(prompts.target_index), max(config.prompts_per_step // engine.world_size, 1), step, seed)
    texts = prompts.prompts.take(pa.array(rows)).to_pylist()
    targets = prompts.target_index[torch.from_numpy(rows)].to(policy.device)
    generator = torch.Generator(policy.device).manual_seed(
        int(np.random.SeedSequence([seed, engine.rank, step]).generate_state(1)[0])
    )
    with engine.whole():
        rollouts = rollout(policy, trie, texts, config.group_size, config.rollouts, generator)
        input_ids, mask = policy.tokenize(texts)
        with torch.no_grad():
            sampled = config.rollouts != "beam"
            scores = policy(input_ids, mask, trie=trie, codes=rollouts.codes).sum(2) if sampled else None
    clock.append(time.monotonic())
    rewards = reward_fn(rollouts, targets, scores)
    advantages = group_advantages(rewards.total, scale_by_deviation=config.loss != "dr_grpo")
    clock.append(time.monotonic())
    update = _update(engine, reference, trie, (input_ids, mask), rollouts, advantages, config, step)
    clock.append(time.monotonic())
    names = ["reward", *(f"reward/{name}" for name in rewards.terms)]
    means = torch.stack([rewards.total.mean(), *(term.mean() for term in rewards.terms.values())]).double().cpu()
    seconds = torch.tensor(np.diff(clock))
    sums = engine.total(torch.cat([means, seconds])) / engine.world_size
    record: dict[str, float] = {"step": step + 1} | update | dict(zip(names, sums.tolist(), strict=False))
    record |= dict(zip(["rollout_seconds", "reward_seconds", "update_seconds"], sums[len(names) :].tolist(), strict=True))
    return record, _sample(step + 1, trie, prompts, rows, texts, targets, rollouts, rewards)


def draw_rows(num_rows: int, count: int, step: int, seed: int) -> Int[np.ndarray, " B"]:
    """Choose the rows of a step: each row once per pass, passes shuffled anew, a function of the step alone."""
    places = step * count + np.arange(count)
    passes = places // num_rows
    chosen = [
        np.random.default_rng([seed, int(number)]).permutation(num_rows)[places[passes == number] % num_rows]
        for number in np.unique(passes)
    ]
    return np.concatenate(chosen)


def _update(
    engine: Engine,
    reference: SidPolicy,
    trie: SidTrie,
    inputs: tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]],
    rollouts: Rollouts,
    advantages: Advantages,
    config: GrpoConfig,
    step: int,
) -> dict[str, float]:
    """Update the weights `updates_per_rollout` times on one set of roll-outs."""
    tokens = rollouts.codes >= 0
    with torch.no_grad():
        reference_log_probs = reference(*inputs, trie=trie, codes=rollouts.codes)
    groups = torch.tensor([float(advantages.live.sum()), float(len(tokens))], dtype=torch.float64)
    num_live, num_groups = engine.total(groups).tolist()
    old_log_probs, sums = None, torch.zeros(3, dtype=torch.float64)
    for _ in range(config.updates_per_rollout):
        log_probs = engine(*inputs, trie=trie, codes=rollouts.codes)
        old_log_probs = log_probs.detach() if old_log_probs is None else old_log_probs
        parts = group_loss(
            log_probs,
            old_log_probs,
            reference_log_probs,
            tokens,
            advantages,
            kind=config.loss,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            kl_coefficient=config.kl_coefficient,
        )
        # with every group of every worker dead the loss is 0, and the step moves nothing but the optimiser's momentum
        engine.backward(parts.loss / max(num_live, 1.0) * engine.world_size)
        engine.step(learning_rate((step + 1) / (config.steps + 1), config.lr, config.warmup_rate))
        sums += torch.stack([parts.loss.detach(), parts.kl, parts.clipped]).double().cpu()
    loss, divergence, clipped = (engine.total(sums) / max(num_live, 1.0) / config.updates_per_rollout).tolist()
    return {
        "loss": loss,
        "kl": divergence,
        "clipped_rate": clipped,
        "dead_groups": int(num_groups - num_live),
        "dead_group_rate": 1 - num_live / num_groups,
    }


def _sample(
    step: int,
    trie: SidTrie,
    prompts: Prompts,
    rows: Int[np.ndarray, " B"],
    texts: list[str],
    targets: Int[Tensor, " B"],
    rollouts: Rollouts,
    rewards: Rewards,
) -> list[dict[str, Any]]:
    """Write down the best roll-outs of a step's first prompts, for people to read."""
    lines = []
    for place in range(min(SAMPLED_PROMPTS, len(texts))):
        best = rewards.total[place].argsort(descending=True, stable=True)[:SAMPLED_ROLLOUTS].tolist()
        lines.append(
            {
                "step": step,
                "example_id": prompts.example_ids[int(rows[place])].as_py(),
                "prompt": texts[place],
                "target": trie.item_ids[int(targets[place])].as_py(),
                "rollouts": [
                    {
                        "item_id": trie.item_ids[int(rollouts.item_index[place, index])].as_py(),
                        "reward": float(rewards.total[place, index]),
                        "terms": {name: float(term[place, index]) for name, term in rewards.terms.items()},
                    }
                    for index in best
                ],
            }
        )
    return lines
