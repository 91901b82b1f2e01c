"""The sweep tries every candidate once, also when it is interrupted."""

import os

import numpy as np
import pyarrow as pa
import pytest
from plotly.offline import get_plotlyjs

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config import build_config
from digr.sids import sweep
from jobs import tune_codebooks
from jobs.runtime.session import Options
from jobs.training.codebook_trials import max_trials_at_once, train_policies

pytestmark = pytest.mark.ray


@pytest.fixture
def config(tmp_path):
    store, rng = Store(str(tmp_path)), np.random.default_rng(0)
    vectors = (np.repeat(np.eye(4, 8), 10, axis=0) * 5 + rng.normal(size=(40, 8))).astype(np.float32)
    ids = [f"item{index:03d}" for index in range(40)]
    artifacts.write_table(store, "item_embeddings", pa.table({"item_id": ids, "embedding": list(vectors)}))
    artifacts.commit(store, Manifest(name="item_embeddings", rows=40))
    row = {
        "example_id": ["e", "f"],
        "user_id": ["u", "u"],
        "split": ["train", "valid"],
        "history": [["item002"], ["item002", "item030"]],
        "target": ["item030", "item004"],
    }
    artifacts.write_table(store, "histories", pa.table(row))
    artifacts.commit(store, Manifest(name="histories", rows=2))
    tree = {
        "run": {"dir": str(tmp_path)},
        "sids": {"latent_dim": 4, "hidden_dims": [8], "epochs": 20},
        "sft": {"eval_every_epochs": 1},
        "tune": {
            "level_sizes": [[4, 4], [8, 8]],
            "quantisers": ["rkmeans", "rqvae"],
            "early_stopping": False,
            "policy_overrides": {"policy.hidden_dim": 16, "policy.num_layers": 1, "sft.epochs": 1},
        },
    }
    return build_config(tree, where="test")


def test_every_candidate_is_a_row_and_the_best_has_the_fewest_collisions(config, tmp_path, ray_local, capsys):
    summary = tune_codebooks.run(config, Options())
    table = artifacts.read_table(Store(config.run.dir), "codebook_sweep").to_pylist()
    assert sorted(row["trial"] for row in table) == ["rkmeans-4x4", "rkmeans-8x8", "rqvae-4-4x4", "rqvae-4-8x8"]
    assert {row["status"] for row in table} == {"ok"} and all(len(row["usage_rate"]) == 2 for row in table)
    best = min(table, key=lambda row: row["raw_collision_rate"])
    assert summary["facts"]["codebook_sweep"]["best"] == best["trial"]
    assert f"best by raw_collision_rate: {best['trial']}" in capsys.readouterr().out
    page = (tmp_path / "codebook_sweep" / "_sweep.html").read_text()
    assert "rqvae-4-8x8" in page and "http" not in page.replace(get_plotlyjs(), "").replace("http://www.w3.org", "")
    assert tune_codebooks.run(config, Options())["status"] == "skipped"


def test_a_second_sweep_in_the_same_folder_runs_only_what_did_not_finish(config, ray_local, monkeypatch, capsys):
    store, work = Store(config.run.dir), f"{config.run.dir}/work"

    def break_one(self, iteration, trials, trial, **info):
        if sweep.candidate_name(trial.config["candidate"]) == "rqvae-4-8x8":
            raise RuntimeError("broken on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(tune_codebooks.TrialProgress, "on_trial_complete", break_one)
        before = tune_codebooks._sweep(config, store, work)
    assert before.num_errors == 1
    after = tune_codebooks._sweep(config, store, work)
    assert "resuming the interrupted sweep" in capsys.readouterr().out
    assert len(after) == 4 and after.num_errors == 0
    seconds = {result.metrics["trial_id"]: result.metrics["seconds"] for result in after}
    kept = {result.metrics["trial_id"]: result.metrics["seconds"] for result in before if not result.error}
    assert len(kept) == 3 and kept.items() <= seconds.items()


def test_a_candidate_that_cannot_be_fitted_is_a_row_with_its_error(config, ray_local):
    tune = config.tune.model_copy(update={"level_sizes": ((4, 4), (64, 4)), "quantisers": ("rkmeans",)})
    tune_codebooks.run(config.model_copy(update={"tune": tune}), Options())
    rows = {row["trial"]: row for row in artifacts.read_table(Store(config.run.dir), "codebook_sweep").to_pylist()}
    assert rows["rkmeans-4x4"]["status"] == "ok" and rows["rkmeans-64x4"]["status"] == "error"
    assert "a level has 64 codes but there are only 40 items" in rows["rkmeans-64x4"]["error"]
    assert artifacts.require(Store(config.run.dir), "codebook_sweep").rejected == {"trial error": 1}


def test_a_sweep_in_which_nothing_works_is_an_error(config, ray_local):
    tune = config.tune.model_copy(update={"level_sizes": ((64,),), "quantisers": ("rkmeans",)})
    with pytest.raises(ValueError, match=r"codebook_sweep: all 1 trials failed; the first: ValueError: .*only 40 items"):
        tune_codebooks.run(config.model_copy(update={"tune": tune}), Options())


def test_the_best_few_are_trained_to_ndcg_early_stopping_ends_some_and_a_second_run_measures_none_again(
    config, ray_local, monkeypatch
):
    more = {"early_stopping": True, "latent_dims": (2, 3, 4), "policy_trials": 4, "max_concurrent": 1, "reduction_factor": 2}
    config = config.model_copy(update={"tune": config.tune.model_copy(update=more)})
    store, work = Store(config.run.dir), f"{config.run.dir}/kept"
    monkeypatch.setattr(Store, "work_uri", lambda self, name, request: work)
    monkeypatch.setattr(artifacts, "remove", lambda uri: None)
    tune_codebooks.run(config, Options())
    rows = artifacts.read_table(store, "codebook_sweep").to_pylist()
    assert len(rows) == 8 and {row["status"] for row in rows} == {"ok", "stopped"}
    assert all((row["epoch"] < 20) == (row["status"] == "stopped") for row in rows)
    measured = {row["trial"]: row["valid_ndcg@10"] for row in rows if row["valid_ndcg@10"] is not None}
    assert len(measured) == min(4, sum(row["status"] == "ok" for row in rows)) and all(
        0 <= value <= 1 for value in measured.values()
    )
    again = train_policies(config, store, work, [row for row in rows if row["trial"] in measured])
    assert again == measured


def test_concurrency_is_that_of_the_machine_not_of_the_logical_cpus(ray_local):
    assert max_trials_at_once({"cpu": 1.0, "gpu": 0.0}) == min(8, os.cpu_count() or 1)
    assert max_trials_at_once({"cpu": 1000.0, "gpu": 0.0}) == 1
