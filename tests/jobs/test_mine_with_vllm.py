"""The vLLM miner and judge on the real engine (its CPU build), with tiny random models: what they write is mostly nonsense."""

import json
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import jsonschema
import pyarrow as pa
import pytest
from PIL import Image

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config import build_config
from digr.interests.prompts import RESPONSE_SCHEMA
from digr.tables import STATUSES, flat_interests
from jobs import label_interests, mine_interests
from jobs.runtime.session import Options
from tests.models.endpoint_server import serve_endpoint
from tests.nested_interests import nest_rows
from tests.patience import CEILING_SECONDS, POLL_SECONDS, wait_until
from tests.tiny_models import make_text_model, make_vision_model

# the engines start four times, which on a busy machine takes minutes
pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(3600)]


def _write_items(store, folder):
    """Six items: four with images, one of them broken, and one whose text is too long for the model."""
    for index in range(4):
        Image.new("RGB", (64, 64), (index * 60, 20, 20)).save(folder / f"{index}.png")
    (folder / "2.png").write_text("broken")
    titles = ["rod", "reel", "hat", "lamp", "x " * 2500, "mug"]
    images = [str(folder / f"{index}.png") if index < 4 else None for index in range(6)]
    items = pa.table({"item_id": list("abcdef"), "title": titles, "image_uri": images})
    artifacts.begin(store, "items")
    artifacts.write_table(store, "items", items)
    artifacts.commit(store, Manifest(name="items", rows=len(items)))


def _tree(store, folder, **sections):
    return {"run": {"dir": store.root}, "images": {"folders": [str(folder)]}} | sections


def _check(item, row):
    """Only the text that is too long is an error; an answer that was not cut off keeps to the schema."""
    assert (row["status"] == "error") == (item == "e")
    if item == "e":
        assert "maximum context length" in row["reason"]
    elif "max_tokens" in (row["reason"] or ""):
        assert row["output_tokens"] == 192
    else:
        jsonschema.validate(json.loads(row["response"], strict=False), RESPONSE_SCHEMA)


@contextmanager
def _vllm_server(model: Path, log: Path) -> Iterator[str]:
    """Run vLLM's own OpenAI server on loopback; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    guide = json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "tiny"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "2048", "--enforce-eager"]
    command += ["--structured-outputs-config", guide]
    with log.open("w") as sink:
        environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
        server = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=environment)
    try:
        wait_until(lambda: server.poll() is not None or _is_healthy(port), lambda: log.read_text()[-3000:], pause_seconds=1)
        assert server.poll() is None, log.read_text()[-3000:]
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(CEILING_SECONDS)


def _is_healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=POLL_SECONDS).is_success
    except httpx.TransportError:
        return False


def test_an_endpoint_that_vllm_itself_serves_loses_no_row_and_keeps_to_the_schema(tmp_path, ray_local, monkeypatch):
    monkeypatch.setenv("DIGR_TEST_KEY", "any")
    store = Store(str(tmp_path / "run"))
    _write_items(store, tmp_path)
    with _vllm_server(make_text_model(tmp_path / "text"), tmp_path / "server.log") as url:
        miner = {"kind": "openai", "name": "served", "base_url": url, "model": "tiny", "api_key_env": "DIGR_TEST_KEY"}
        interests = {"miners": [miner | {"max_tokens": 192}], "max_text_chars": 5000, "min_yield_rate": 0.0}
        mine_interests.run(build_config(_tree(store, tmp_path, interests=interests), where="test"), Options())
        asked = {"kind": "openai", "base_url": url, "model": "tiny", "api_key_env": "DIGR_TEST_KEY"}
        judged = _judge(tmp_path / "judged", asked | {"logprobs": False, "max_tokens": 64})
    rows = {row["owner_id"]: row for row in artifacts.read_table(store, "interest_responses").to_pylist()}
    assert set(rows) == set("abcdef") and {row["status"] for row in rows.values()} <= set(STATUSES)
    for item, row in rows.items():
        _check(item, row)
        assert (row["input_tokens"] > 0) == (row["output_tokens"] > 0) == (item != "e")
    assert {row["judge_probability"] for row in judged} <= {0.0, 1.0}
    assert [row["labelers"] for row in judged] == [["judge"]] * 6


def test_tiny_random_models_with_and_without_images_lose_no_row_and_keep_to_the_schema(tmp_path, ray_local, monkeypatch):
    monkeypatch.setenv("DIGR_TEST_KEY", "any")
    runpy.run_path(str(Path(__file__).parents[1] / "vllm_support" / "sitecustomize.py"))
    store = Store(str(tmp_path / "run"))
    _write_items(store, tmp_path)
    common = {"kind": "vllm", "on_cpu": True, "max_model_len": 2048, "max_tokens": 192, "batch_size": 8}
    text = common | {"name": "text", "model": str(make_text_model(tmp_path / "text"))}
    both = common | {"name": "both", "model": str(make_vision_model(tmp_path / "both")), "modality": "both"}
    with serve_endpoint() as server:
        endpoint = {"kind": "openai", "name": "endpoint", "base_url": server.url, "model": "x", "api_key_env": "DIGR_TEST_KEY"}
        interests = {"miners": [text, both, endpoint], "max_text_chars": 5000, "min_yield_rate": 0.0}
        mine_interests.run(build_config(_tree(store, tmp_path, interests=interests), where="test"), Options())

    responses = artifacts.open_parts(store.uri("interest_responses")).to_table()["miner"].to_pylist()
    # endpoints came last, after every engine: now the first engine and they are asked side by side
    assert responses.index("endpoint") < responses.index("both")
    rows = {(row["miner"], row["owner_id"]): row for row in artifacts.read_table(store, "interest_responses").to_pylist()}
    assert all(rows.pop(("endpoint", item))["status"] == "ok" for item in "abcdef")
    assert set(rows) == {(miner, item) for miner in ("text", "both") for item in "abcdef"}
    assert {row["status"] for row in rows.values()} <= set(STATUSES)
    for (_, item), row in rows.items():
        _check(item, row)
    assert [rows["both", item]["modality"] for item in "abcdef"] == ["both", "both", "text", "both", "text", "text"]
    assert rows["both", "c"]["reason"].startswith("broken image")
    assert rows["both", "a"]["input_tokens"] > rows["both", "c"]["input_tokens"]
    assert artifacts.require(store, "interest_responses").rejected["broken image, asked without it"] == 1


def _judge(folder: Path, judge: dict) -> list[dict]:
    """Label one interest of each of the six items with a judge alone."""
    store = Store(str(folder / "run"))
    folder.mkdir()
    _write_items(store, folder)
    rows = [{"owner_id": item, "interest": f"weekend trout fishing {item}"} for item in "abcdef"]
    artifacts.write_table(store, "interests", nest_rows("interests", rows, "abcdef"))
    artifacts.commit(store, Manifest(name="interests", rows=6))
    labels = {"labelers": ["judge"], "judge": judge}
    label_interests.run(build_config(_tree(store, folder, labels=labels), where="test"), Options())
    return flat_interests(artifacts.read_table(store, "interest_labels")).to_pylist()


def test_a_tiny_random_judge_gives_a_probability_of_yes_for_all_but_the_text_that_is_too_long(tmp_path, ray_local):
    model = make_text_model(tmp_path / "text")
    rows = _judge(tmp_path / "judged", {"kind": "vllm", "model": str(model), "on_cpu": True, "max_model_len": 1024})
    assert [row["owner_id"] for row in rows] == list("abcdef")
    by_item = {row["owner_id"]: row["judge_probability"] for row in rows}
    assert by_item.pop("e") is None
    assert all(0 < probability < 1 for probability in by_item.values())
    assert len(set(by_item.values())) > 1
    store = Store(str(tmp_path / "judged" / "run"))
    assert artifacts.require(store, "interest_labels").rejected == {"judge: error": 1}
    verdicts = artifacts.read_table(store, "interest_verdicts")
    assert sorted(verdicts["output_tokens"].to_pylist()) == [0, 1, 1, 1, 1, 1]
