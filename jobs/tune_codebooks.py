"""Sweep codebook sizes and quantisers with Ray Tune on cheap diagnostics; a killed sweep goes on where it was."""

import os
import time
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from ray import tune

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config, apply_overrides
from digr.sids.building import fit_and_assign
from jobs.runtime import Options, main, say, start_ray
from jobs.stage import Made, run_stage

MEASURED = (
    "usage_rate",
    "perplexity",
    "raw_collision_rate",
    "collision_rate",
    "suffix_rate",
    "reconstruction_r2",
    "neighbour_prefix_share",
    "cointeraction_prefix_share",
    "chance_prefix_share",
)


class Progress(tune.Callback):
    """Say on the driver what each finished trial found."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print one line."""
        say("codebook_sweep", f"{_name(trial.config)}: score {trial.last_result['score']:.4f}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print one line."""
        say("codebook_sweep", f"{_name(trial.config)} failed")


def run(config: Config, options: Options) -> dict[str, Any]:
    """Build `codebook_sweep`."""

    def build(store: Store, work: str) -> Mapping[str, Made]:
        return _build(config, store, work)

    return run_stage(
        config,
        options,
        outputs=["codebook_sweep"],
        sections=["sids", "tune"],
        inputs=["item_embeddings", "histories"],
        build=build,
    )


def _name(candidate: Mapping[str, Any]) -> str:
    return f"{candidate['quantiser']}-{'x'.join(map(str, candidate['level_sizes']))}"


def _sweep(config: Config, store: Store, work: str) -> tune.ResultGrid:
    """Run the trials that are not finished yet; each reads the vectors itself."""
    metric = config.tune.metric
    # Ray would save the sweep's state only now and then: a kill would lose trials that have finished
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")

    def trial(candidate: dict[str, Any]) -> None:
        tried = apply_overrides(config, {f"sids.{key}": value for key, value in candidate.items()})
        start = time.monotonic()
        device = "cuda" if config.cluster.use_gpu else "cpu"
        facts = fit_and_assign(store, tried.sids, seed=config.run.seed, report=lambda text: None, device=device).facts
        score = facts[metric][0] if isinstance(facts[metric], list) else facts[metric]
        tune.report({name: facts[name] for name in MEASURED} | {"score": score, "seconds": time.monotonic() - start})

    filesystem, path = artifacts.filesystem_of(work)
    filesystem.create_dir(path, recursive=True)
    trainable = tune.with_resources(trial, {"cpu": config.tune.cpus_per_trial, "gpu": float(config.cluster.use_gpu)})
    if tune.Tuner.can_restore(f"{path}/sweep", storage_filesystem=filesystem):
        say("codebook_sweep", "going on with the sweep that was interrupted")
        return tune.Tuner.restore(f"{path}/sweep", trainable, restart_errored=True, storage_filesystem=filesystem).fit()
    space = {"quantiser": config.tune.quantisers, "level_sizes": [list(sizes) for sizes in config.tune.level_sizes]}
    return tune.Tuner(
        trainable,
        param_space={key: tune.grid_search(list(values)) for key, values in space.items()},
        tune_config=tune.TuneConfig(max_concurrent_trials=config.tune.max_concurrent),
        run_config=tune.RunConfig(
            name="sweep", storage_path=path, storage_filesystem=filesystem, verbose=0, callbacks=[Progress()]
        ),
    ).fit()


def _build(config: Config, store: Store, work: str) -> Mapping[str, Made]:
    start_ray(config)
    rows, results = [], _sweep(config, store, work)
    for result in map(results.__getitem__, range(len(results))):
        # Ray's error is a whole traceback; its last line is what the trial raised
        error = str(result.error).strip().splitlines()[-1] if result.error else None
        candidate = dict(result.config or {})
        row = {"trial": _name(candidate), **candidate, "status": "error" if error else "ok", "error": error}
        rows.append(row | {name: (result.metrics or {}).get(name) for name in (*MEASURED, "seconds", "score")})
    ranked = sorted((row for row in rows if row["status"] == "ok"), key=lambda row: row["score"])
    ranked = ranked if config.tune.metric == "raw_collision_rate" else ranked[::-1]
    if not ranked:
        raise ValueError(f"codebook_sweep: all {len(rows)} trials failed; the first: {rows[0]['error']}")
    for row in ranked:
        say(
            "codebook_sweep",
            f"{row['trial']:28} usage >= {min(row['usage_rate']):6.1%}  colliding {row['raw_collision_rate']:6.1%}  "
            f"R2 {row['reconstruction_r2']:.3f}  neighbours {row['neighbour_prefix_share'][0]:.3f}  co-interaction "
            f"{row['cointeraction_prefix_share'][0]:.3f}  {row['seconds']:.0f} s",
        )
    facts = {"metric": config.tune.metric, "best": ranked[0]["trial"]}
    say("codebook_sweep", f"best by {facts['metric']}: {facts['best']}")
    artifacts.write_table(store, "codebook_sweep", pa.Table.from_pylist(rows))
    return {"codebook_sweep": Made(len(rows), {"trial failed": len(rows) - len(ranked)}, facts)}


if __name__ == "__main__":
    main(run)
