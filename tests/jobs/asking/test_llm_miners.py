"""What a worker that asks an endpoint does with one batch, and how large a batch is."""

import json

import pyarrow as pa
import pytest

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config import build_config
from digr.config.interests import OpenAIMiner
from digr.interests import images, ledger
from digr.interests.prompts import item_requests
from digr.tables import conform
from jobs.asking.llm_miners import _Ask, _with_messages, answer_with_model
from jobs.asking.miners import requests_of
from jobs.asking.sink import Sink
from tests.models.endpoint_server import serve_endpoint


def test_a_batch_is_in_the_ledger_before_the_next_one_is_sent(tmp_path):
    # answers were once written by other workers, later: a kill lost all that had been asked in the meantime
    items = conform("items", pa.table({"item_id": list("abcd"), "title": ["fine", "garbage", "half", "well"]}), where="test")
    uri = ledger.open_ledger(Store(str(tmp_path)))
    with serve_endpoint() as server:
        miner = OpenAIMiner(name="m", base_url=server.url, model="x", max_retries=0, usd_per_million_output_tokens=1e6)
        prompts = _with_messages(item_requests(items, "k", "text", 100), miner, {"max_bytes": 1024, "max_side": 16})
        ask = _Ask("item", miner, "key", Sink(uri, None))
        first = ask(prompts.slice(0, 2)).to_pylist()
        assert artifacts.open_parts(uri).to_table()["owner_id"].to_pylist() == ["a", "b"] and len(server.bodies) == 2
        second = ask(prompts.slice(2, 2)).to_pylist()
    assert sorted(row["status"] for row in first) == ["error", "ok"]
    assert sum(row["rows"] for row in first + second) == 4
    assert sum(row["usd"] for row in first + second) == 30 and sum(row["tokens"] for row in first + second) == 330
    rows = {row["owner_id"]: row for row in artifacts.open_parts(uri).to_table().to_pylist()}
    assert {item: row["status"] for item, row in rows.items()} == {"a": "ok", "b": "error", "c": "truncated", "d": "ok"}
    assert json.loads(rows["a"]["response"])["interests"]


def test_a_row_whose_image_may_come_is_an_error_that_was_not_asked_and_a_broken_image_is_asked_in_text(tmp_path, monkeypatch):
    # a server that was busy for a moment made an item mined from its text only, with status "ok", for ever
    monkeypatch.setattr(images, "_FIRST_PAUSE_SECONDS", 0.01)
    uris = ["http://127.0.0.1:1/busy.png", str(tmp_path / "absent.png")]
    items = conform("items", pa.table({"item_id": ["a", "b"], "title": ["fine", "fine"], "image_uri": uris}), where="test")
    uri = ledger.open_ledger(Store(str(tmp_path)))
    with serve_endpoint() as server:
        miner = OpenAIMiner(name="m", base_url=server.url, model="x", max_retries=0, modality="both")
        prompts = _with_messages(item_requests(items, "k", "both", 100), miner, {"max_bytes": 1024, "max_side": 16})
        _Ask("item", miner, "key", Sink(uri, None))(prompts)
        assert len(server.bodies) == 1
    rows = {row["owner_id"]: row for row in artifacts.open_parts(uri).to_table().to_pylist()}
    assert {item: row["status"] for item, row in rows.items()} == {"a": "error", "b": "ok"}
    assert rows["a"]["reason"].startswith("image not fetched in 3 tries") and rows["b"]["reason"].startswith("broken image")
    assert len(ledger.done_numbers(uri, retry_failed=True)) == 1


@pytest.mark.ray
def test_a_batch_stays_a_batch_although_ray_joins_blocks(tmp_path, ray_local, monkeypatch):
    monkeypatch.setenv("DIGR_TEST_KEY", "any")
    store, ids = Store(str(tmp_path)), [f"{item:03d}" for item in range(150)]
    items = pa.table({"item_id": ids, "title": ["fine"] * 150})
    artifacts.commit(store, Manifest(name="items", rows=artifacts.write_table(store, "items", items)))
    config, uri = build_config({"run": {"dir": store.root}}, where="test"), ledger.open_ledger(store)
    with serve_endpoint() as server:
        miner = OpenAIMiner(name="m", base_url=server.url, model="x", api_key_env="DIGR_TEST_KEY")
        requests = requests_of(config, store, "item", miner)
        answers = answer_with_model(config, "item", miner, requests, Sink(uri, None))
        counts = [block.to_pylist() for block in answers.iter_batches(batch_size=None, batch_format="pyarrow")]
    # a block per batch, so that progress is told while others are asked, with a row per status: all are "ok"
    assert sorted([row["rows"] for row in block] for block in counts) == [[22], [64], [64]]
    assert artifacts.open_parts(uri).count_rows() == 150
