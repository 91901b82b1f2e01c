"""The pipeline runs every job in order, skips what is done, and its planted interests are found again, used, and steer lists."""

import io
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import ray

from digr import artifacts
from digr.artifacts import Store
from digr.config import build_config, load_config
from digr.config.run import SyntheticConfig
from digr.data.ids import build_id_index
from digr.data.synthetic import build_shop
from digr.ranking.neighbours import HistoryItems
from digr.ranking.sources import SOURCES, sources_of_families
from digr.ranking.steering import Wish
from digr.ranking.systems import SERVED
from digr.tables import TABLES
from jobs.pipeline import MINING, MODEL, RANKING, plan, run
from jobs.runtime.session import Options
from serve.contract.schemas import Steer
from serve.lists.ranking import RunRanker, load_run_ranker, wishes_of

ROOT = Path(__file__).resolve().parents[2]


def _config(**sections):
    return build_config({"run": {"dir": "runs/x"}, **sections}, "test")


def test_the_plan_without_ablations_is_each_job_once_in_order():
    assert [step.job for step in plan(_config())] == [
        "prepare_data",
        "mine_interests",
        "train_classifier",
        "label_interests",
        "embed_items",
        "build_neighbours",
        "train_ranker",
        "build_sids",
        "train_sft",
        "train_grpo",
        "recommend",
        "evaluate",
    ]


def test_an_ablation_runs_from_the_embeddings_on_with_its_own_choices_before_the_evaluation():
    ablations = [{"name": "plain", "overrides": {"embeddings.interests": "none"}}, {"name": "rl", "overrides": {}, "grpo": True}]
    steps = plan(_config(ablations=ablations))
    names = [step.label for step in steps]
    policies = [job for job in MODEL if job not in (*RANKING, "train_towers")]
    assert names[11:15] == [f"{job} (plain)" for job in policies if job != "train_grpo"]
    assert names[15:20] == [f"{job} (rl)" for job in policies]
    assert names[-1] == "evaluate"
    assert len(steps) == len(MINING) + len(MODEL) - 1 + 4 + 5 + 1
    assert {step.config.embeddings.interests for step in steps[:11]} == {"trusted"}
    assert {step.config.embeddings.interests for step in steps[11:15]} == {"none"}
    assert {step.config.run.variant for step in steps[11:15]} == {"plain"}


def test_a_run_without_ranking_has_no_ranker():
    assert not set(RANKING) & {step.job for step in plan(_config(ranking={"enabled": False}))}


def test_towers_are_trained_once_before_the_lists_are_made():
    ablations = [{"name": "plain", "overrides": {}}]
    names = [step.label for step in plan(_config(ablations=ablations, towers={"enabled": True}))]
    assert names[names.index("train_towers") + 1] == "recommend"
    assert [name for name in names if "towers" in name] == ["train_towers"]


def test_grpo_may_be_left_out_of_the_run_or_of_an_ablation():
    ablations = [{"name": "rl", "overrides": {}, "grpo": True}, {"name": "plain", "overrides": {"sids.epochs": 1}}]
    trained = [step.label for step in plan(_config(ablations=ablations, grpo={"enabled": False})) if step.job == "train_grpo"]
    assert trained == ["train_grpo (rl)"]


def test_a_wrong_override_of_an_ablation_stops_the_run_before_it_starts():
    with pytest.raises(ValueError, match=r"embeddings\.interest: unknown key; the nearest known key is embeddings\.interests"):
        plan(_config(ablations=[{"name": "plain", "overrides": {"embeddings.interest": "none"}}]))


SHOP = [
    # one thread each: other tests run beside this one, and threads that wait for each other would spin
    "cluster.encode_threads=1",
    "train.threads_per_worker=1",
    "train.engine=plain",  # starts faster; test_train_policy.py trains with DeepSpeed
    "train.num_workers=1",
    "data.synthetic.num_items=240",
    "data.synthetic.num_users=800",
    "data.synthetic.num_interests=12",
    "classifier.max_pairs=1000",
    "sids.level_sizes=[16, 16, 16]",
    "sids.epochs=100",
    "policy.hidden_dim=64",
    "policy.num_layers=2",
    "sft.epochs=10",
    "grpo.steps=20",
    "grpo.eval_every_steps=10",
    "grpo.prompts_per_step=32",
    "grpo.group_size=8",
]
MARGIN = 0.05
"""NDCG@10 on test by which semantic IDs with interests beat those without."""
RANKED_MARGIN = 0.03
"""NDCG@10 and HR@10 on test by which ranked lists beat all others."""
WORDS = {
    "weekend trout fishing": "catching trout in a river",
    "home espresso brewing": "making espresso in my kitchen",
    "sourdough bread baking": "baking my own bread",
    "winter camping trips": "a tent for cold nights",
}
"""Planted interests, and how someone might ask for them."""
WEIGHTS = (-1.0, 0.0, 0.25, 0.5, 1.0, 2.0)
STEERED = 20
"""Test histories whose lists are steered."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ray_local) -> tuple[list[str], dict, dict]:
    """Run the pipeline on a small shop: as a command that is killed in the fine-tuning, again, and once more.

    Gives the lines of the second run, its summary, and that of the third.
    """
    changes = [*SHOP, f"run.dir={tmp_path_factory.mktemp('shop')}"]
    command = [sys.executable, "-m", "jobs.pipeline", "--config", "configs/quickstart.toml", *changes]
    command.append(f"cluster.address={ray.get_runtime_context().gcs_address}")
    killed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    assert any("policy_sft: epoch 4," in line for line in killed.stdout)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    config = load_config(str(ROOT / "configs/quickstart.toml"), changes)
    with redirect_stdout(io.StringIO()) as printed:
        second = run(config, Options())
    return printed.getvalue().splitlines(), second, run(config, Options())


def _at_10(run_dir: str, split: str, metric: str = "ndcg") -> dict[str, float]:
    metrics = artifacts.read_table(Store(run_dir), "metrics", split=[split], name=[metric]).to_pylist()
    return {row["system"]: row["value"] for row in metrics if row["k"] == 10 and row["slice"] == "all"}


@pytest.mark.ray
@pytest.mark.timeout(3600)  # the fixture runs the pipeline twice, which beside busy processes takes many minutes
def test_a_run_tells_each_job_and_ends_with_the_table_the_report_and_a_summary(finished):
    lines, summary, _ = finished
    steps = [line for line in lines if "] pipeline: " in line and "/16 " in line]
    assert len(steps) == 16
    assert any("sid_grpo" in line for line in lines)
    assert summary["status"] == "done"
    assert Path(summary["report"]).is_file() and f"report: {summary['report']}" in lines


@pytest.mark.ray
def test_a_killed_run_goes_on_where_it_was(finished):
    lines, summary, _ = finished
    assert [job["status"] for job in summary["jobs"]] == ["skipped"] * 8 + ["built"] * 8
    first_epoch = next(line for line in lines if "policy_sft: epoch" in line)
    # checkpoints are written after every second epoch; workers may train a little longer than the job that was killed
    assert any(f"epoch {epoch}," in first_epoch for epoch in (3, 5, 7)), first_epoch


@pytest.mark.ray
def test_other_tools_open_the_folder_of_every_table_as_it_is(finished):
    """A reader of Parquet folders took `manifest.json`, the shop's images and the report for parts of the tables."""
    run_dir = finished[1]["run_dir"]
    store = Store(run_dir)
    manifests = {name: artifacts.read_manifest(store, name) for name in [*TABLES, "recommendations/sft_test"]}
    rows = {name: manifest.rows for name, manifest in manifests.items() if manifest}
    assert {"items", "interactions", "histories", "interests", "interest_labels", "item_sids", "metrics"} <= set(rows)
    assert {name: len(pd.read_parquet(Path(run_dir, name))) for name in rows} == rows


@pytest.mark.ray
def test_another_run_skips_every_job(finished):
    _, _, summary = finished
    assert {job["status"] for job in summary["jobs"]} == {"skipped"}


@pytest.mark.ray
def test_semantic_ids_with_interests_beat_those_without_them(finished):
    _, summary, _ = finished
    ndcg = _at_10(summary["run_dir"], "test")
    assert ndcg["sid_sft"] >= ndcg["sid_sft[without_interests]"] + MARGIN, ndcg


@pytest.mark.ray
def test_grpo_does_not_lower_ndcg_on_valid(finished):
    _, summary, _ = finished
    ndcg = _at_10(summary["run_dir"], "valid")
    assert ndcg["sid_grpo"] >= ndcg["sid_sft"], ndcg


@pytest.mark.ray
@pytest.mark.parametrize("metric", ["ndcg", "hr"])
def test_ranked_lists_beat_popularity_transition_counts_and_the_policy_alone(finished, metric):
    found = _at_10(finished[1]["run_dir"], "test", metric)
    for other in ("popularity", "transition_counts", "transition_counts_history", "sid_sft", "sid_grpo"):
        assert found["ranked"] >= found[other] + RANKED_MARGIN, found


@pytest.mark.ray
@pytest.mark.parametrize("split", ["valid", "test"])
def test_every_ranked_item_names_a_source(finished, split):
    store = Store(finished[1]["run_dir"])
    rows = artifacts.read_table(store, f"recommendations/ranked_{split}", ["item_ids", "sources"]).to_pylist()
    assert all(len(row["sources"]) == len(row["item_ids"]) and all(row["sources"]) for row in rows)
    assert {name for row in rows for item in row["sources"] for name in item} == {
        *SOURCES,
        *sources_of_families(["interests"]),
    } - {"image"}


@pytest.fixture(scope="module")
def ranker(finished) -> RunRanker:
    """Load what the endpoint would rank and steer by."""
    found = load_run_ranker(Store(finished[1]["run_dir"]))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def histories(finished, item_ids) -> list[np.ndarray]:
    """Return some test histories."""
    rows = artifacts.read_table(Store(finished[1]["run_dir"]), "histories", ["history"], split=["test"])
    index = build_id_index(item_ids)
    return [index.find(history) for history in rows["history"].to_pylist()[:STEERED]]


@pytest.fixture(scope="module")
def item_ids(finished) -> pa.Array:
    """Return the items of the ranker's index, in its order."""
    return artifacts.read_table(Store(finished[1]["run_dir"]), "items", ["item_id"])["item_id"].combine_chunks()


def _best_ten(ranker: RunRanker, items: pa.Array, history: np.ndarray, wishes: list[Wish]) -> tuple[list[str], list[float]]:
    lists = ranker.lists.rank(
        HistoryItems(history, np.array([0, len(history)])), None, 10, wishes=wishes, carriers=ranker.vocabulary.carriers
    )
    ((_, found),) = lists
    return items.take(pa.array(found[SERVED].candidates.item)).to_pylist(), found[SERVED].score.tolist()


@pytest.mark.ray
@pytest.mark.parametrize("way", ["interest", "text"])
def test_the_more_a_wish_weighs_the_more_of_the_best_ten_are_items_planted_with_it(finished, ranker, item_ids, histories, way):
    shop = artifacts.require(Store(finished[1]["run_dir"]), "items")
    pairs = build_shop(SyntheticConfig.model_validate(shop.config["data"]["synthetic"]), shop.seed).planted.to_pylist()
    shares = {}
    for interest, words in WORDS.items():
        planted = {row["item_id"] for row in pairs if row["interest"] == interest}
        asked = {"interest": interest, "text": words}[way]
        wishes = [wishes_of(ranker, [Steer.model_validate({way: asked, "weight": weight})]) for weight in WEIGHTS]
        best = [[item for history in histories for item in _best_ten(ranker, item_ids, history, wish)[0]] for wish in wishes]
        shares[interest] = [float(np.isin(items, list(planted)).mean()) for items in best]
    mean = np.mean(list(shares.values()), axis=0)
    assert mean.tolist() == sorted(mean), shares
    assert all(share[WEIGHTS.index(0.0)] < share[-1] for share in shares.values()), shares


@pytest.mark.ray
def test_a_wish_of_no_weight_changes_nothing(ranker, item_ids, histories):
    wishes = wishes_of(ranker, [Steer(text="making espresso in my kitchen", weight=0)])
    for history in histories:
        assert _best_ten(ranker, item_ids, history, wishes) == _best_ten(ranker, item_ids, history, [])
