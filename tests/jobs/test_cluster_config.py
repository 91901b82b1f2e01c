"""`configs/cluster.toml` from end to end, with tiny stand-ins for its models, its endpoint and its GPUs."""

import runpy
import tomllib
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config, build_config
from digr.config.run import SyntheticConfig
from digr.data.synthetic import build_shop, draw_images
from digr.policy.model import load_policy
from jobs import pipeline
from jobs.runtime.session import Options
from tests.models.endpoint_server import serve_endpoint
from tests.tiny_models import make_text_encoder, make_text_model, make_vision_model

ROOT = Path(__file__).resolve().parents[2]
MINERS = {"qwen-text", "qwen-vision", "frontier"}
# the fixture runs sixteen jobs and starts four engines, which beside busy processes takes many minutes
pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(3600)]

SMALL: dict[str, Any] = {
    "interests": {"max_text_chars": 200, "max_image_side": 64},
    "classifier": {"max_pairs": 400, "epochs": 2},
    "embeddings": {"encoder": {"max_tokens": 64}},
    "sids": {"level_sizes": [4, 4, 4], "epochs": 10},
    "policy": {"max_tokens": 256},
    "tasks": {"max_text_chars": 20},
    "sft": {"epochs": 1, "batch_tokens": 8192, "valid_beam_width": 10},
    "grpo": {"steps": 2, "prompts_per_step": 16, "group_size": 4, "eval_every_steps": 2, "valid_beam_width": 10},
    "decoding": {"beam_width": 10, "k": 10},
    "ranking": {"rounds": 5},
    "evaluation": {"bootstrap": 100},
    # the jobs of the main run again; test_pipeline.py runs an ablation, test_label_and_embed.py one that leaves out a miner
    "ablations": [],
}
"""Sizes, and no ablation; everything else is what a cluster gets."""


def _merged(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(tree[key], value) if isinstance(value, Mapping) and isinstance(tree.get(key), Mapping) else value
        for key, value in changes.items()
    }
    return {**tree, **both}


def _write_catalogue(folder: Path) -> None:
    """Write a small shop in the common form, with an image of every item."""
    (folder / "images").mkdir(parents=True)
    shop = build_shop(SyntheticConfig(num_items=24, num_users=30, num_interests=4), seed=0)
    draw_images(shop, 64, folder / "images")
    files = [f"images/{item_id}.png" for item_id in shop.items["item_id"].to_pylist()]
    pq.write_table(shop.items.drop_columns("image_uri").append_column("image_file", [files]), folder / "items.parquet")
    pq.write_table(shop.interactions, folder / "interactions.parquet")


def _stand_ins(folder: Path, url: str) -> dict[str, Any]:
    """What the test has in place of a cluster's data, models and GPUs."""
    engine = {"on_cpu": True, "max_model_len": 2048, "max_tokens": 128, "concurrency": 1}
    return {
        "run": {"dir": str(folder / "run")},
        "data": {"path": str(folder / "catalogue")},
        "embeddings": {"encoder": {"name": str(make_text_encoder(folder / "encoder"))}},
        "policy": {"base": str(make_text_model(folder / "base"))},
        "train": {"num_workers": 2, "use_gpu": False},
        "cluster": {"use_gpu": False, "encode_threads": 1},
        "interests": {
            "miners": {
                "qwen-text": engine | {"model": str(make_text_model(folder / "text"))},
                "qwen-vision": engine | {"model": str(make_vision_model(folder / "vision"))},
                "frontier": {"base_url": url, "api_key_env": "DIGR_TEST_KEY"},
            }
        },
    }


def _config(folder: Path, url: str) -> Config:
    tree = tomllib.loads((ROOT / "configs" / "cluster.toml").read_text())
    changes = _merged(_stand_ins(folder, url), SMALL)
    of_miners = changes["interests"].pop("miners")
    tree["interests"]["miners"] = [miner | of_miners[miner["name"]] for miner in tree["interests"]["miners"]]
    return build_config(_merged(tree, changes), "configs/cluster.toml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ray_local):
    """Run the pipeline; gives its config, its summary and the bodies that the endpoint got."""
    folder = tmp_path_factory.mktemp("cluster")
    runpy.run_path(str(ROOT / "tests" / "vllm_support" / "sitecustomize.py"))
    _write_catalogue(folder / "catalogue")
    with pytest.MonkeyPatch.context() as patch, serve_endpoint("max_tokens", "temperature", "limits") as endpoint:
        patch.setenv("DIGR_TEST_KEY", "any")
        config = _config(folder, endpoint.url)
        yield config, pipeline.run(config, Options()), endpoint.bodies


def test_the_clusters_ablation_leaves_out_what_the_endpoint_found():
    tree = tomllib.loads((ROOT / "configs" / "cluster.toml").read_text())
    steps = [step for step in pipeline.plan(build_config(tree, "configs/cluster.toml")) if step.config.run.variant]
    assert [step.job for step in steps] == ["embed_items", "build_sids", "train_sft", "recommend"]
    assert {step.config.embeddings.without_miners for step in steps} == {("frontier",)}


def test_the_clusters_config_builds_every_stage_with_every_miner(finished):
    """The endpoint refused `max_tokens`, and the quantiser wanted a GPU in the driver."""
    config, summary, bodies = finished
    assert [job["status"] for job in summary["jobs"]] == ["built"] * len(pipeline.plan(config))
    assert Path(summary["report"]).is_file()
    ledger = artifacts.read_table(Store(config.run.dir), "interest_responses")
    answered = ledger.filter(pc.equal(ledger["status"], "ok")).select(["miner", "owner"]).to_pylist()
    assert {(row["miner"], row["owner"]) for row in answered} == set(product(MINERS, ("item", "user")))
    shown = ledger.filter(pc.equal(ledger["owner"], "item")).select(["miner", "modality"]).to_pylist()
    assert {(row["miner"], row["modality"]) for row in shown} == {
        ("qwen-text", "text"),
        ("qwen-vision", "both"),
        ("frontier", "both"),
    }
    assert bodies and all("max_completion_tokens" in body and "max_tokens" not in body for body in bodies)


def test_the_clusters_policies_load_and_their_lists_have_k_distinct_items_each(finished):
    config, _, _ = finished
    store = Store(config.run.dir)
    for policy in ("sft", "grpo"):
        load_policy(Path(config.run.dir) / f"policy_{policy}")
        lists = artifacts.read_table(store, f"recommendations/{policy}_test")["item_ids"].to_pylist()
        assert lists and all(len(set(items)) == len(items) == config.decoding.k for items in lists)
    metrics = artifacts.read_table(store, "metrics").to_pylist()
    systems = {row["system"] for row in metrics if row["name"] == "ndcg" and row["split"] == "test"}
    assert {"sid_sft", "sid_grpo", "ranked", "ranked_without_interests"} <= systems
