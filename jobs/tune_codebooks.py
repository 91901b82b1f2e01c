"""Sweep codebooks with Ray Tune by cheap diagnostics, and the best few by validation NDCG; a killed sweep is resumed."""

import os
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from ray import tune

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.evaluation.sid_charts import sweep_page
from digr.sids import building, sweep
from jobs.runtime.command_line import main
from jobs.runtime.session import Options, log, start_ray
from jobs.runtime.stage import Output, run_stage
from jobs.training.codebook_trials import fit_candidate, max_trials_at_once, train_policies

STAGE = "codebook_sweep"


class TrialProgress(tune.Callback):
    """Logs the result of each finished trial on the driver."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print one line."""
        found = trial.last_result
        log(STAGE, f"{sweep.candidate_name(trial.config['candidate'])}: score {found['score']:.4f} at epoch {found['epoch']}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print one line."""
        log(STAGE, f"{sweep.candidate_name(trial.config['candidate'])} failed")


def run(config: Config, options: Options) -> dict[str, Any]:
    """Build `codebook_sweep`."""

    def build(store: Store, work: str) -> Mapping[str, Output]:
        return _build(config, store, work)

    sections, inputs = ["sids", "tune", "policy", "sft", "decoding"], ["item_embeddings", "histories"]
    return run_stage(config, options, outputs=[STAGE], sections=sections, inputs=inputs, build=build)


def _sweep(config: Config, store: Store, work: str) -> tune.ResultGrid:
    """Run the trials that are not finished yet; each reads the vectors itself."""
    chosen, epochs = config.tune, config.sids.epochs
    # Ray's default interval of saving the sweep's state is so long that a kill would lose finished trials
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")

    def trial(chosen_one: dict[str, Any]) -> None:
        start = time.monotonic()

        def report_candidate(epoch: int, facts: dict[str, Any]) -> None:
            found = {name: facts[name] for name in sweep.DIAGNOSTICS} | {"score": sweep.diagnostic(facts, chosen.metric)}
            tune.report(found | {"epoch": epoch, "seconds": time.monotonic() - start})

        watch = report_candidate if chosen.early_stopping else None
        report_candidate(epochs, fit_candidate(config, store, chosen_one["candidate"], watch).facts)

    filesystem, path = artifacts.filesystem_of(work)
    filesystem.create_dir(path, recursive=True)
    needs = {"cpu": chosen.cpus_per_trial, "gpu": float(config.cluster.use_gpu)}
    trainable, tried = tune.with_resources(trial, needs), sweep.candidates(config.sids, chosen, building.num_vectors(store))
    if tune.Tuner.can_restore(f"{path}/sweep", storage_filesystem=filesystem):
        log(STAGE, "resuming the interrupted sweep")
        return tune.Tuner.restore(f"{path}/sweep", trainable, restart_errored=True, storage_filesystem=filesystem).fit()
    steps: dict[str, Any] = {"max_t": epochs, "grace_period": max(1, epochs // 10), "reduction_factor": chosen.reduction_factor}
    asha = tune.schedulers.ASHAScheduler(time_attr="epoch", **steps)
    run = tune.RunConfig(name="sweep", storage_path=path, storage_filesystem=filesystem, verbose=0, callbacks=[TrialProgress()])
    return tune.Tuner(
        trainable,
        param_space={"candidate": tune.grid_search(tried)},
        tune_config=tune.TuneConfig(
            metric="score",
            mode="min" if chosen.metric == "raw_collision_rate" else "max",
            max_concurrent_trials=chosen.max_concurrent or max_trials_at_once(needs),
            scheduler=asha if chosen.early_stopping else None,
            reuse_actors=True,  # starting an actor takes longer than fitting most candidates
        ),
        run_config=run,
    ).fit()


def _build(config: Config, store: Store, work: str) -> Mapping[str, Output]:
    start_ray(config)
    rows, results = [], _sweep(config, store, work)
    for result in map(results.__getitem__, range(len(results))):
        # Ray's error is a whole traceback; its last line is the trial's error
        error = str(result.error).strip().splitlines()[-1] if result.error else None
        candidate, found = (result.config or {})["candidate"], result.metrics or {}
        stopped = found.get("epoch", 0) < config.sids.epochs
        row = {"trial": sweep.candidate_name(candidate), **candidate, "error": error}
        row |= {name: found.get(name) for name in (*sweep.DIAGNOSTICS, "epoch", "score", "seconds")}
        rows.append(row | {"status": "error" if error else "stopped" if stopped else "ok"})
    ranked = sweep.rank_rows(rows, config.tune.metric)
    if not ranked:
        raise ValueError(f"{STAGE}: all {len(rows)} trials failed; the first: {rows[0]['error']}")
    best = {row["trial"] for row in ranked[: config.tune.policy_trials]}
    scores = train_policies(config, store, work, [row for row in rows if row["trial"] in best])
    rows = [row | {sweep.NDCG: scores.get(row["trial"])} for row in rows]
    ranked, correlation = sweep.rank_rows(rows, config.tune.metric), sweep.correlations(rows)
    told = [f"rank correlation with NDCG@10 of {len(scores)} candidates: {name} {value}" for name, value in correlation.items()]
    for line in (*map(sweep.row_text, ranked), *told):
        log(STAGE, line)
    metric, best_trial = sweep.NDCG if scores else config.tune.metric, ranked[0]["trial"]
    log(STAGE, f"best by {metric}: {best_trial}")
    artifacts.write_table(store, STAGE, pa.Table.from_pylist(rows))
    filesystem, path = artifacts.filesystem_of(store.uri(STAGE))
    with filesystem.open_output_stream(f"{path}/_sweep.html") as stream:
        stream.write(sweep_page(ranked, correlation).encode())
    rejected = Counter(f"trial {row['status']}" for row in rows if row["status"] != "ok")
    facts = {"metric": metric, "best": best_trial, "num_policies": len(scores)}
    return {STAGE: Output(len(rows), rejected, facts | {"rank_correlation": correlation})}


if __name__ == "__main__":
    main(run)
