"""Group relative policy optimisation on the trie, from the SFT policy, under a reward of named terms.

Roll-outs, update and reference all use log-probabilities renormalised on the trie, without dropout. So training and sampling
use the same distribution, and the ratio of a roll-out's first update is exactly 1.
"""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from digr.config.policy import GrpoConfig
from digr.policy.decoding.search import Beams
from digr.policy.model import SidPolicy, train_without_dropout
from digr.policy.training.advantages import Advantages, group_advantages, group_loss
from digr.policy.training.engine import Engine, learning_rate, policy_of
from digr.policy.training.rollouts import Rollouts, best_rollouts, rollout
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

SAMPLED_PROMPTS = 4
SAMPLED_ROLLOUTS = 4


class Prompts(NamedTuple):
    """Training prompts of this worker, each with its own target: equal histories may have different ones."""

    example_ids: pa.StringArray
    prompts: pa.StringArray
    target_index: Int[Tensor, " S"]
    """Position of each target in `trie.item_ids`."""
    user_ids: Sequence[str] = ()
    """Users of the prompts, for rewards that need them."""


class Rewards(NamedTuple):
    """Rewards of roll-outs."""

    total: Float[Tensor, "B G"]
    terms: Mapping[str, Float[Tensor, "B G"]]
    """Each named term, unweighted."""


class RewardFn(Protocol):
    """Compute rewards of roll-outs, given the targets of their prompts; groups without scores are already sorted best first."""

    def __call__(
        self, rollouts: Rollouts, target_index: Int[Tensor, " B"], scores: Float[Tensor, "B G"] | None, user_ids: Sequence[str], /
    ) -> Rewards:
        """Return a reward for each roll-out; `user_ids` is empty if the users are unknown."""


def train_grpo(
    engine: Engine,
    trie: SidTrie,
    prompts: Prompts,
    valid: ValidExamples,
    config: GrpoConfig,
    *,
    reward_fn: RewardFn,
    decoding: Decoding,
    seed: int,
    best_folder: Path,
    resume: Path | None = None,
    save: Save = lambda record, write: None,
    report: Report = lambda record: None,
) -> Progress:
    """Train the engine's policy; write the best weights on validation, possibly those of SFT, to `best_folder`.

    The SFT policy is validated first, as step 0. With `keep = "ndcg"` only a strictly better NDCG@10 replaces it, with
    `keep = "reward"` only a strictly higher mean reward with no lower NDCG@10 than the SFT policy's. Validation and
    checkpoints happen every `eval_every_steps` steps and at the end.

    Args:
        engine: engine with the SFT policy, which is also its reference, as a copy or without its adapters.
        prompts: this worker's share.
        valid: this worker's share.
        reward_fn: gets all roll-outs of a prompt and the prompt's target.
        best_folder: local folder that the first worker creates; each checkpoint has a copy.
        resume: folder of the checkpoint to resume.
        save: called after each validation with the metrics and a writer of this worker's checkpoint files.
        report: called after each step.
    """

    def mean_reward(beams: Beams, targets: Int[Tensor, " B"], user_ids: Sequence[str]) -> Float[Tensor, " B"]:
        return reward_fn(best_rollouts(trie, beams, config.group_size), targets, None, user_ids).total.mean(1)

    def validate_and_save(progress: Progress, record: dict[str, Any]) -> None:
        start = time.monotonic()
        record |= validate(engine, trie, valid, decoding, mean_reward)
        save_if_better(engine, progress, _score(record, progress, config.keep), best_folder)
        progress.records.append(record)
        record |= {"best": kept_record(progress)[SCORE], "valid_seconds": time.monotonic() - start}
        save(record, lambda folder: save_state(folder, engine, progress, best_folder))

    if resume:
        progress = load_state(resume, engine, best_folder)
    else:
        progress = Progress()
        validate_and_save(progress, {"step": 0})
    while not progress.done:
        record, sample = train_step(engine, trie, prompts, config, reward_fn=reward_fn, step=progress.step, seed=seed)
        progress.step = progress.position = progress.step + 1
        progress.done = progress.step >= config.steps
        if progress.step % config.eval_every_steps and not progress.done:
            progress.records.append(record)
            report(record)
            continue
        progress.samples += sample
        validate_and_save(progress, record)
    return progress


def kept_record(progress: Progress) -> dict[str, Any]:
    """Return the metrics of the step whose weights are kept."""
    return next(record for record in progress.records if record["step"] == progress.best_position and SCORE in record)


def _score(record: Mapping[str, float], progress: Progress, keep: Literal["ndcg", "reward"]) -> float:
    """Return the score by which weights are kept; -inf if the ranking is worse than the SFT policy's."""
    if keep == "ndcg":
        return record[SCORE]
    sft = progress.records[0] if progress.records else record
    return record["valid_reward"] if record[SCORE] >= sft[SCORE] else -math.inf


def train_step(
    engine: Engine,
    trie: SidTrie,
    prompts: Prompts,
    config: GrpoConfig,
    *,
    reward_fn: RewardFn,
    step: int,
    seed: int,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Roll out, compute rewards and update; return the step's metrics over all workers and some of this worker's roll-outs."""
    clock, policy = [time.monotonic()], policy_of(engine)
    rows = rows_of_step(len(prompts.target_index), max(config.prompts_per_step // engine.world_size, 1), step, seed)
    texts = prompts.prompts.take(pa.array(rows)).to_pylist()
    targets = prompts.target_index[torch.from_numpy(rows)].to(policy.device)
    generator = torch.Generator(policy.device).manual_seed(
        int(np.random.SeedSequence([seed, engine.rank, step]).generate_state(1)[0])
    )
    with engine.generation_model() as model:
        # all workers have equally many prompts, so equally many parts, and make the same collective calls in the update
        places = np.array_split(np.arange(len(texts)), min(config.accumulate, len(texts)))
        parts = [_roll_out(model, trie, [texts[place] for place in some], config, generator) for some in places]
    rollouts = Rollouts(*(torch.cat(tensors) for tensors in zip(*(part.rollouts for part in parts), strict=True)))
    scores = None if config.rollouts == "beam" else torch.cat([part.scores for part in parts if part.scores is not None])
    clock.append(time.monotonic())
    user_ids = [prompts.user_ids[row] for row in rows] if prompts.user_ids else []
    rewards = reward_fn(rollouts, targets, scores, user_ids)
    advantages = group_advantages(rewards.total, scale_by_deviation=config.loss != "dr_grpo")
    clock.append(time.monotonic())
    update = _update(engine, trie, parts, advantages, config, step=step)
    clock.append(time.monotonic())
    names = ["reward", *(f"reward/{name}" for name in rewards.terms)]
    means = torch.stack([rewards.total.mean(), *(term.mean() for term in rewards.terms.values())]).double().cpu()
    seconds = torch.tensor(np.diff(clock))
    sums = engine.total(torch.cat([means, seconds])) / engine.world_size
    record: dict[str, float] = {"step": step + 1} | update | dict(zip(names, sums.tolist(), strict=False))
    record |= dict(zip(["rollout_seconds", "reward_seconds", "update_seconds"], sums[len(names) :].tolist(), strict=True))
    chosen = [prompts.example_ids[row].as_py() for row in rows[:SAMPLED_PROMPTS].tolist()]
    sample = _sample(trie, chosen, texts, targets, rollouts=rollouts, rewards=rewards)
    return record, [{"step": step + 1} | line for line in sample]


def rows_of_step(num_rows: int, count: int, step: int, seed: int) -> Int[np.ndarray, " B"]:
    """Choose the rows of a step: each row once per pass, in a new random order per pass; depends only on step and seed."""
    places = step * count + np.arange(count)
    passes = places // num_rows
    chosen = [
        np.random.default_rng([seed, int(number)]).permutation(num_rows)[places[passes == number] % num_rows]
        for number in np.unique(passes)
    ]
    return np.concatenate(chosen)


class _Part(NamedTuple):
    """Some prompts of a step with their roll-outs, which a worker processes at once."""

    input_ids: Int[Tensor, "B T"]
    attention_mask: Bool[Tensor, "B T"]
    rollouts: Rollouts
    scores: Float[Tensor, "B G"] | None
    """Log-probabilities of sampled roll-outs; None for beams, which are already sorted."""

    def log_probs(self, model: Engine | SidPolicy, trie: SidTrie) -> Float[Tensor, "B G L"]:
        """Score the roll-outs."""
        return model(self.input_ids, self.attention_mask, trie=trie, codes=self.rollouts.codes)


@torch.no_grad()
def _roll_out(model: SidPolicy, trie: SidTrie, texts: list[str], config: GrpoConfig, generator: torch.Generator) -> _Part:
    rollouts = rollout(model, trie, texts, config.group_size, config.rollouts, generator=generator)
    part = _Part(*model.tokenize(texts), rollouts, None)
    return part if config.rollouts == "beam" else part._replace(scores=part.log_probs(model, trie).sum(2))


def _update(
    engine: Engine, trie: SidTrie, parts: list[_Part], advantages: Advantages, config: GrpoConfig, *, step: int
) -> dict[str, float]:
    """Update the weights `updates_per_rollout` times on one set of roll-outs."""
    with torch.no_grad(), engine.reference_model() as model:
        references = [part.log_probs(model, trie) for part in parts]
    sizes = [len(part.input_ids) for part in parts]
    own = [Advantages(*pair) for pair in zip(advantages.values.split(sizes), advantages.live.split(sizes), strict=True)]
    groups = torch.tensor([float(advantages.live.sum()), float(sum(sizes))], dtype=torch.float64)
    num_live, num_groups = engine.total(groups).tolist()
    train_without_dropout(policy_of(engine))
    old, sums = list[Tensor](), torch.zeros(3, dtype=torch.float64)
    for _ in range(config.updates_per_rollout):
        for index, (part, reference) in enumerate(zip(parts, references, strict=True)):
            log_probs = part.log_probs(engine, trie)
            if index == len(old):
                old.append(log_probs.detach())
            found = group_loss(
                log_probs,
                old[index],
                reference,
                part.rollouts.codes >= 0,
                own[index],
                kind=config.loss,
                clip_low=config.clip_low,
                clip_high=config.clip_high,
                kl_coefficient=config.kl_coefficient,
            )
            # if all groups of all workers are dead the loss is 0, and only the optimiser's momentum changes weights
            engine.backward(found.loss / max(num_live, 1.0) * engine.world_size)
            sums += torch.stack([found.loss.detach(), found.kl, found.clipped]).double().cpu()
        engine.step(learning_rate((step + 1) / (config.steps + 1), config.lr, config.warmup_rate))
    loss, divergence, clipped = (engine.total(sums) / max(num_live, 1.0) / config.updates_per_rollout).tolist()
    return {
        "loss": loss,
        "kl": divergence,
        "clipped_rate": clipped,
        "dead_groups": int(num_groups - num_live),
        "dead_group_rate": 1 - num_live / num_groups,
    }


def _sample(
    trie: SidTrie, example_ids: list[str], texts: list[str], targets: Int[Tensor, " B"], *, rollouts: Rollouts, rewards: Rewards
) -> list[dict[str, Any]]:
    """Return the best roll-outs of a step's first prompts in readable form."""
    lines = []
    for place, example_id in enumerate(example_ids):
        best = rewards.total[place].argsort(descending=True, stable=True)[:SAMPLED_ROLLOUTS].tolist()
        lines.append(
            {
                "example_id": example_id,
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
