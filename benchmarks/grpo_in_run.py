"""What GRPO did in a finished run: mean reward and NDCG@10 on all its validation rows, before and after, with paired intervals.

Reads the run that the environment variable DIGR_RUN names, trained with the config that DIGR_CONFIG names
(`configs/industrial.toml` if not given). The reward of a prompt is the mean over its most probable items, as many as the group
size. Intervals are 95 % bootstrap intervals over the prompts. The ratio is the mean reward after over that before.
"""

import os

import numpy as np
import torch
from jaxtyping import Float

from benchmarks.harness import Bar, Measurement, main
from digr import artifacts
from digr.artifacts import Store
from digr.config import Config, load_config
from digr.policy.decoding.search import beam_search, rank_items
from digr.policy.examples import prompt_examples
from digr.policy.model import load_policy
from digr.policy.training.rollouts import best_rollouts
from digr.policy.training.validation import SCORE, K
from digr.sids.trie import load_trie

BAR = Bar(
    full=1.0,
    quick=0.99,
    better="at_least",
    quick_reason="the gain on two hundred rows is about as large as its standard error: it shows that no reward is lost",
)
RESAMPLES = 2000
BATCH = 128


@torch.no_grad()
def judge(config: Config, store: Store, max_examples: int) -> dict[str, Float[np.ndarray, "2 B"]]:
    """Return the mean reward and the NDCG@10 of each validation row under both policies."""
    from jobs.training.policy_data import item_positions, load_reward, load_sids

    trie = load_trie(store)
    histories = artifacts.read_table(store, "histories", split=["valid"]).slice(0, max_examples)
    rows = prompt_examples(histories, load_sids(store), config.data.max_history)
    prompts, targets = rows["prompt"].to_pylist(), item_positions(trie, rows["target"])
    reward = load_reward(config, store, trie, torch.device("cpu"))
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
    found = {}
    for name in ("policy_sft", "policy_grpo"):
        values = found[name] = np.zeros((2, len(prompts)))
        with artifacts.local_files(store, name) as folder:
            policy = load_policy(folder)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            beams = beam_search(policy, trie, [prompts[index] for index in chosen], config.decoding.beam_width)
            own = targets[torch.from_numpy(chosen)]
            hits = rank_items(trie, beams, K).item_index == own[:, None]
            values[0, chosen] = reward(best_rollouts(trie, beams, config.grpo.group_size), own, None, []).total.mean(1)
            values[1, chosen] = (hits / torch.log2(torch.arange(2, K + 2))).sum(1)
    return found


def measure(quick: bool) -> Measurement:
    """Measure both policies; the quick form takes 200 validation rows."""
    torch.set_num_threads(1)
    run = os.environ.get("DIGR_RUN")
    if not run:
        raise ValueError("set DIGR_RUN to the folder of a finished run, and DIGR_CONFIG to its config")
    config = load_config(os.environ.get("DIGR_CONFIG", "configs/industrial.toml"), [f"run.dir={run}"])
    before, after = judge(config, Store(run), 200 if quick else 10**9).values()
    rng, figures = np.random.default_rng(0), dict[str, object]({"prompts": before.shape[1]})
    for place, name in enumerate(("mean_reward", SCORE)):
        gains = after[place] - before[place]
        drawn = [gains[rng.integers(0, len(gains), len(gains))].mean() for _ in range(RESAMPLES)]
        low, high = np.percentile(drawn, [2.5, 97.5])
        figures |= {f"{name}_before": round(before[place].mean(), 5), f"{name}_after": round(after[place].mean(), 5)}
        figures |= {f"{name}_gain": f"{gains.mean():+.5f} [{low:+.5f}, {high:+.5f}]"}
    return Measurement(figures, ratio=float(after[0].mean() / before[0].mean()))


if __name__ == "__main__":
    main(measure, BAR)
