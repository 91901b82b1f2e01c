"""Seconds of a GRPO step, split into roll-out, reward and update, against what the model alone needs for the same tokens.

The floor is three passes of the bare transformer over every prompt with its group of roll-outs behind it, each prompt once:
forward (roll-out), forward (reference), forward and backward (update). The ratio is a step over that floor: what search,
trie, sampling, reward, log-probabilities, loss and optimiser add. The embedded shop, default policy and group size, both
kinds of roll-outs; the ratio is of the beam.
"""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Measurement, main
from benchmarks.shop import MAX_HISTORY, Shop, random_shop
from digr.config.policy import GrpoConfig, PolicyConfig, RewardConfig
from digr.policy.examples import prompt_examples
from digr.policy.model import SidPolicy, build_scratch_policy, tree_inputs
from digr.policy.training.engine import PlainEngine, make_optimizer
from digr.policy.training.grpo import Prompts, Rewards, train_grpo
from digr.policy.training.rollouts import Rollouts
from digr.policy.training.validation import Decoding, ValidExamples
from digr.rewards.interest_reward import reward_terms, reward_weights, total_reward

BAR = 1.5
LEVELS = (32, 32, 32)
PARTS = ("rollout", "reward", "update")


def reward_of(shop: Shop) -> object:
    """Make the default reward with random qualities and interest vectors."""
    generator, num_items = torch.Generator().manual_seed(0), shop.trie.num_items
    quality = torch.rand(num_items, generator=generator)
    vectors = torch.nn.functional.normalize(torch.randn(num_items, 384, generator=generator), dim=1)
    weights = reward_weights(RewardConfig())

    def reward(rollouts: Rollouts, target_index: torch.Tensor, scores: torch.Tensor | None) -> Rewards:
        targets = shop.trie.codes[target_index]
        terms = reward_terms(
            rollouts.codes, targets, rollouts.item_index, target_index, quality, interest_embeddings=vectors, scores=scores
        )
        return Rewards(total_reward(terms, weights), terms)

    return reward


def step_seconds(shop: Shop, prompts: Prompts, config: GrpoConfig) -> Mapping[str, float]:
    """Train and return the median seconds of each part of a step, the first left out."""
    policy, reference = (build_scratch_policy(PolicyConfig(), LEVELS, seed=0) for _ in range(2))
    valid = ValidExamples([shop.sids.texts[0]], torch.tensor([0]))
    with tempfile.TemporaryDirectory() as folder:
        progress = train_grpo(
            PlainEngine(policy, make_optimizer(policy, config.lr, 0.0), max_grad_norm=1.0, reference=reference),
            shop.trie,
            prompts,
            valid,
            config,
            reward_fn=reward_of(shop),  # type: ignore[arg-type]
            decoding=Decoding(config.group_size, 1),
            seed=0,
            best_folder=Path(folder) / "best",
        )
    steps = [record for record in progress.records if "reward" in record][1:]
    return {part: float(np.median([record[f"{part}_seconds"] for record in steps])) for part in PARTS}


def floor_seconds(shop: Shop, prompts: Prompts, config: GrpoConfig, steps: int) -> float:
    """Return the median seconds of the bare passes over a step's tokens."""
    policy: SidPolicy = build_scratch_policy(PolicyConfig(), LEVELS, seed=0).eval()
    times = []
    for step in range(steps):
        start = step * config.prompts_per_step % (len(prompts.prompts) - config.prompts_per_step)
        texts = prompts.prompts[start : start + config.prompts_per_step].to_pylist()
        codes = shop.trie.codes[torch.randint(shop.trie.num_items, (len(texts), config.group_size))]
        tree = tree_inputs(policy, *policy.tokenize(texts), codes[:, :, :-1].long())
        begin = time.monotonic()
        with torch.no_grad():
            policy.hidden(**tree)
            policy.hidden(**tree)
        policy.hidden(**tree).sum().backward()
        times.append(time.monotonic() - begin)
    return float(np.median(times[1:]))


def measure(quick: bool) -> Measurement:
    """Time steps with both kinds of roll-outs, and the floor."""
    shop, steps = random_shop(LEVELS, 300 if quick else 2000), 4 if quick else 20
    rows = prompt_examples(shop.split("train"), shop.sids, MAX_HISTORY)
    targets = torch.from_numpy(np.asarray(shop.sids.item_index.find(rows["target"])))
    order = torch.from_numpy(np.asarray(shop.sids.item_index.find(shop.trie.item_ids))).argsort()
    prompts = Prompts(rows["example_id"].combine_chunks(), rows["prompt"].combine_chunks(), order[targets])
    config = GrpoConfig(steps=steps, eval_every_steps=steps)
    floor = floor_seconds(shop, prompts, config, steps)
    figures: dict[str, float] = {"prompts": config.prompts_per_step, "group_size": config.group_size}
    figures["floor_seconds"] = round(floor, 4)
    totals = {}
    for kind in ("beam", "sample"):
        found = step_seconds(shop, prompts, config.model_copy(update={"rollouts": kind}))
        totals[kind] = sum(found.values())
        figures |= {f"{kind}_{part}_seconds": round(seconds, 4) for part, seconds in found.items()}
        figures |= {f"{kind}_step_seconds": round(totals[kind], 4), f"{kind}_over_floor": round(totals[kind] / floor, 2)}
    return Measurement(figures, ratio=totals["beam"] / floor, bar=BAR)


if __name__ == "__main__":
    main(measure)
