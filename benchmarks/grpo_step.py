"""Seconds of a GRPO step, split into roll-out, reward and update, against what the model alone needs for the same tokens.

The floor is three passes of the bare transformer over every prompt, encoded once, followed by its group of roll-outs:
forward (roll-out), forward (reference), forward and backward (update). The ratio is a step over that floor: what search,
trie, sampling, reward, log-probabilities, loss and optimiser add. Data, policy and group size are the embedded shop and the
defaults. Both kinds of roll-outs are timed; the ratio is that of beam search.
"""

import time

import numpy as np
import torch

from benchmarks.harness import Bar, Measurement, main
from benchmarks.shop import MAX_HISTORY, Shop, random_shop
from benchmarks.trainings import grpo_seconds
from digr.config.policy import GrpoConfig, PolicyConfig
from digr.policy.examples import prompt_examples
from digr.policy.model import SidPolicy, build_scratch_policy, tree_inputs
from digr.policy.training.grpo import Prompts

BAR = Bar(full=1.5, quick=2.0, quick_reason="the median of three steps, which one slow step moves")
LEVELS = (32, 32, 32)


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
    config = GrpoConfig(steps=steps)
    floor = floor_seconds(shop, prompts, config, steps)
    figures: dict[str, float] = {"prompts": config.prompts_per_step, "group_size": config.group_size}
    figures["floor_seconds"] = round(floor, 4)
    totals = {}
    for kind in ("beam", "sample"):
        policy, reference = (build_scratch_policy(PolicyConfig(), LEVELS, seed=0) for _ in range(2))
        found = grpo_seconds(policy, reference, shop.trie, prompts, config.model_copy(update={"rollouts": kind}))
        totals[kind] = sum(found.values())
        figures |= {f"{kind}_{part}_seconds": round(seconds, 4) for part, seconds in found.items()}
        figures |= {f"{kind}_step_seconds": round(totals[kind], 4), f"{kind}_over_floor": round(totals[kind] / floor, 2)}
    return Measurement(figures, ratio=totals["beam"] / floor)


if __name__ == "__main__":
    main(measure, BAR)
