"""What GRPO gains on the embedded shop: mean reward and NDCG@10 on validation, for three seeds, each fine-tuned anew.

Reads the artifacts up to the semantic IDs of the finished run that the environment variable DIGR_RUN names, and trains with
the configuration of `configs/quickstart.toml` in this process. The ratio is the mean reward after GRPO over that after
fine-tuning, averaged over the seeds; a seed that ranks worse than before makes it 0. As in a run, the weights are chosen on the
same validation rows, so NDCG@10 cannot fall: if no step ranks as well as the fine-tuned weights, which are the best of many on
these rows, those are kept and the seed gains nothing. The figures also give the result of the last step's weights, which are not
chosen, for each seed.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Bar, Measurement, main
from benchmarks.trainings import fine_tune, reinforce
from digr.artifacts import Store
from digr.config import load_config
from digr.policy.training.grpo import kept_record
from digr.policy.training.validation import SCORE

BAR = Bar(
    full=1.001,
    quick=0.99,
    better="at_least",
    quick_reason="four steps gain less than what one hundred rows can show: it shows that no reward is lost",
)
QUICK = ["sft.epochs=1", "sft.max_valid_examples=100", "grpo.steps=4", "grpo.eval_every_steps=2", "grpo.max_valid_examples=100"]


def measure(quick: bool) -> Measurement:
    """Train each seed; the quick form is one seed, one epoch and four steps."""
    torch.set_num_threads(1)
    run = os.environ.get("DIGR_RUN")
    if not run:
        raise ValueError("set DIGR_RUN to the folder of a finished run of configs/quickstart.toml")
    figures: dict[str, float] = {}
    ratios = []
    for seed in range(1 if quick else 3):
        overrides = [f"run.dir={run}", f"run.seed={seed}", *(QUICK if quick else [])]
        config = load_config("configs/quickstart.toml", overrides)
        with tempfile.TemporaryDirectory() as folder:
            fine_tune(config, Store(run), Path(folder) / "sft")
            progress = reinforce(config, Store(run), Path(folder) / "sft", Path(folder) / "grpo")
        before, kept, last = progress.records[0], kept_record(progress), progress.records[-1]
        for name, record in (("before", before), ("kept", kept), ("last", last)):
            figures[f"seed_{seed}_{name}_step"] = record["step"]
            figures[f"seed_{seed}_{name}_reward"] = round(record["valid_reward"], 4)
            figures[f"seed_{seed}_{name}_{SCORE}"] = round(record[SCORE], 4)
        print(seed, {key: value for key, value in figures.items() if f"seed_{seed}" in key}, flush=True)
        ratios.append(kept["valid_reward"] / before["valid_reward"] if kept[SCORE] >= before[SCORE] else 0.0)
    figures["least_reward_gain"] = round(min(ratios) - 1, 4)
    for name in ("reward", SCORE):
        gains = [figures[f"seed_{seed}_last_{name}"] - figures[f"seed_{seed}_before_{name}"] for seed in range(len(ratios))]
        figures[f"mean_last_{name}_gain"] = round(float(np.mean(gains)), 4)
    return Measurement(figures, ratio=float(np.mean(ratios)) * bool(min(ratios)))


if __name__ == "__main__":
    main(measure, BAR)
