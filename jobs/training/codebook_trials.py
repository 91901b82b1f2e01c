"""Tasks of `tune_codebooks` on Ray's workers: fit a candidate, and train a policy on its SIDs."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import ray

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config, apply_overrides
from digr.sids.building import Built, fit_and_assign
from digr.sids.sweep import candidate_name
from jobs.runtime.session import log


def fit_candidate(
    config: Config,
    store: Store,
    candidate: Mapping[str, Any],
    watch: Callable[[int, dict[str, Any]], None] | None = None,
) -> Built:
    """Fit, assign and measure one candidate."""
    import torch

    torch.set_num_threads(max(1, int(config.tune.cpus_per_trial)))
    sids = apply_overrides(config, {f"sids.{key}": value for key, value in candidate.items()}).sids
    device = "cuda" if config.cluster.use_gpu else "cpu"
    return fit_and_assign(store, sids, seed=config.run.seed, report=lambda text: None, device=device, watch=watch)


def max_trials_at_once(needs: Mapping[str, float]) -> int:
    """Return how many trials fit on the cluster's real cores; a local Ray declares more CPUs than there are cores."""
    have = ray.cluster_resources()
    alone = len([node for node in ray.nodes() if node["Alive"]]) == 1
    cpus = min(have.get("CPU", 1.0), float(os.cpu_count() or 1)) if alone else have.get("CPU", 1.0)
    fits = [cpus / needs["cpu"]] + ([have.get("GPU", 0.0) / needs["gpu"]] if needs["gpu"] else [])
    return max(1, int(min(fits)))


def train_policies(config: Config, store: Store, work: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Train a policy on the SIDs of each row's candidate; return trial -> NDCG@10 on validation.

    Each result is stored in `work` as soon as it is available, and not measured again.
    """
    filesystem, path = artifacts.filesystem_of(work)
    known: dict[str, float] = {}
    for row in rows:
        file = f"{path}/ndcg-{row['trial']}.json"
        if filesystem.get_file_info(file).type != pafs.FileType.NotFound:
            with filesystem.open_input_stream(file) as stream:
                known[row["trial"]] = json.loads(stream.read())
    needs = {"cpu": config.tune.cpus_per_trial, "gpu": float(config.cluster.use_gpu)}
    task = ray.remote(num_cpus=needs["cpu"], num_gpus=needs["gpu"], max_retries=2)(_measure)
    waiting = [{key: row[key] for key in ("quantiser", "level_sizes", "latent_dim")} for row in rows if row["trial"] not in known]
    running: dict[ray.ObjectRef, str] = {}
    at_once = config.tune.max_concurrent or max_trials_at_once(needs)
    while waiting or running:
        while waiting and len(running) < at_once:
            candidate = waiting.pop(0)
            running[task.remote(config, store, candidate)] = candidate_name(candidate)
        done, _ = ray.wait(list(running))
        trial, score = running.pop(done[0]), ray.get(done[0])
        known[trial] = score
        with filesystem.open_output_stream(f"{path}/ndcg-{trial}.json") as stream:
            stream.write(json.dumps(score).encode())
        log("codebook_sweep", f"{trial}: NDCG@10 {score:.4f} on validation")
    return known


def _measure(config: Config, store: Store, candidate: Mapping[str, Any]) -> float:
    """Assign the candidate's SIDs to the catalogue, and train a small policy on them."""
    from digr.evaluation.sid_probe import validation_ndcg

    built = fit_candidate(config, store, candidate)
    rows = artifacts.read_table(store, "histories", split=["train", "valid"])
    small = apply_overrides(config, config.tune.policy_overrides)
    codes = np.ascontiguousarray(built.assigned.codes)
    return validation_ndcg(built.item_ids, codes, built.assigned.level_sizes, rows, small)
