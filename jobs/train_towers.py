"""Train the baselines SASRec and its variant over text vectors: artifact `towers`; `recommend` also ranks by their sum.

They learn from the same training sequences as all counts; validation rows select the epoch. A killed training starts again.
"""

from collections.abc import Mapping
from typing import Any

import ray

from digr.artifacts import Store
from digr.config import Config
from digr.evaluation.towers import SCORE, TOWERS
from jobs.ranking.towers import STAGE, fit_one
from jobs.runtime.command_line import main
from jobs.runtime.progress import BARS
from jobs.runtime.session import Options, log, start_ray
from jobs.runtime.stage import Output, run_stage


def run(config: Config, options: Options) -> dict[str, Any]:
    """Train one tower after another, each in a task."""

    def build(store: Store, work: str) -> Mapping[str, Output]:
        start_ray(config)
        fit: Any = ray.remote(num_gpus=int(config.cluster.use_gpu), num_returns="streaming")(fit_one)
        facts = {}
        for name in TOWERS:
            epochs = []
            for told in fit.remote(config, store, name):
                epochs.append(ray.get(told))
                BARS.show(STAGE, len(epochs), config.towers.epochs, name)
                log(STAGE, f"{name}, " + ", ".join(f"{key} {value:.4g}" for key, value in epochs[-1].items()))
            facts[name] = max(epochs, key=lambda epoch: epoch[SCORE])
            log(STAGE, f"{name}: epoch {facts[name]['epoch']} of {len(epochs)} kept")
        return {STAGE: Output(facts=facts)}

    inputs = ["items", "histories", "item_embeddings"]
    return run_stage(config, options, outputs=[STAGE], sections=["towers"], inputs=inputs, build=build)


if __name__ == "__main__":
    main(run)
