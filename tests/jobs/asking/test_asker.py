"""How prompts become ledger rows: each soon after its answer came, whatever else is in its batch, and within the caps."""

import asyncio
import json
import subprocess
import sys
import threading
from functools import partial

import pyarrow as pa
import pytest

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config import build_config
from digr.config.images import ImagesConfig
from digr.config.interests import OpenAIMiner
from digr.images import showing
from digr.images.showing import ImageRules, image_rules
from digr.interests import ledger
from digr.interests.prompts import item_requests
from digr.tables import conform
from jobs.asking import miners
from jobs.asking.asker import Sink, _Asker
from tests.models.endpoint_server import serve_endpoint
from tests.patience import wait_until

IMAGE_RULES = ImageRules(ImagesConfig(private_networks=("127.0.0.0/8",), folders=("/",)), (), max_bytes=1024, max_side=16)


def _miner(server, **changes):
    return OpenAIMiner(
        **{"name": "m", "base_url": server.url, "model": "x", "max_retries": 0, "api_key_env": "DIGR_TEST_KEY"} | changes
    )


def _prompts(miner, titles, uris=None):
    ids = [f"{index:03d}" for index in range(len(titles))]
    items = pa.table({"item_id": ids, "title": titles, "image_uri": uris or [None] * len(ids)})
    requests = item_requests(conform("items", items, where="test"), "k", miner.modality, 100)
    return miners.miner_prompts(requests, miner, IMAGE_RULES)


def _wait_for_rows(uri, rows):
    wait_until(lambda: artifacts.open_parts(uri).count_rows() >= rows, lambda: artifacts.open_parts(uri).to_table())
    return artifacts.open_parts(uri).to_table()


def test_an_answer_is_in_the_ledger_while_another_of_its_batch_is_still_to_come(tmp_path):
    # a batch was written when its last answer was there: one slow answer held back all others, and a kill lost them
    uri = ledger.open_ledger(Store(str(tmp_path)))
    with serve_endpoint() as server:
        miner = _miner(server, usd_per_million_output_tokens=1e6)
        titles = ["fine", "garbage", "half", "wait", "well"]
        worker = _Asker(miner, miners.FORM, "key", partial(miners._response_rows, owner="item", miner=miner), Sink(uri, None))

        async def ask():
            batch = asyncio.create_task(worker(_prompts(miner, titles)))
            written = await asyncio.to_thread(_wait_for_rows, uri, 4)
            assert not batch.done()
            server.release.set()
            return written, (await batch).to_pylist()

        written, counted = asyncio.run(ask())
    rows = {row["owner_id"]: row for row in written.to_pylist()}
    assert {item: row["status"] for item, row in rows.items()} == {"000": "ok", "001": "error", "002": "truncated", "004": "ok"}
    assert json.loads(rows["000"]["response"])["interests"]
    assert {row["status"]: row["rows"] for row in counted} == {"ok": 3, "error": 1, "truncated": 1}
    assert sum(row["cost_usd"] for row in counted) == 40 and sum(row["input_tokens"] for row in counted) == 400


def test_a_row_whose_image_may_come_is_an_error_that_was_not_asked_and_a_broken_image_is_asked_in_text(tmp_path, monkeypatch):
    # a server that was busy for a moment made an item mined from its text only, with status "ok", for ever
    monkeypatch.setattr(showing, "_FIRST_PAUSE_SECONDS", 0.01)
    uri = ledger.open_ledger(Store(str(tmp_path)))
    uris = ["http://127.0.0.1:1/busy.png", str(tmp_path / "absent.png")]
    with serve_endpoint() as server:
        miner = _miner(server, modality="both")
        worker = _Asker(miner, miners.FORM, "key", partial(miners._response_rows, owner="item", miner=miner), Sink(uri, None))
        asyncio.run(worker(_prompts(miner, ["fine", "fine"], uris)))
    assert len(server.bodies) == 1
    rows = {row["owner_id"]: row for row in artifacts.open_parts(uri).to_table().to_pylist()}
    assert {item: row["status"] for item, row in rows.items()} == {"000": "error", "001": "ok"}
    assert rows["000"]["reason"].startswith("image not fetched in 3 tries") and rows["001"]["reason"].startswith("broken image")
    assert len(ledger.done_numbers(uri)) == 1


@pytest.fixture
def catalogue(tmp_path, monkeypatch, ray_local):
    """A run of 150 items; the first is waited for."""
    monkeypatch.setenv("DIGR_TEST_KEY", "any")
    store, ids = Store(str(tmp_path)), [f"{item:03d}" for item in range(150)]
    items = pa.table({"item_id": ids, "title": ["fine", "wait"] + ["fine"] * 148})
    artifacts.commit(store, Manifest(name="items", rows=artifacts.write_table(store, "items", items)))
    return build_config({"run": {"dir": store.root}}, where="test"), store


def _counts(config, store, uri, miner):
    requests = miners.requests_of(config, store, "item", miner)
    answers = miners._ask_model("item", miner, requests, Sink(uri, None), image_rules(config, store))
    return [block.to_pylist() for block in answers.iter_batches(batch_size=None, batch_format="pyarrow")]


@pytest.mark.ray
def test_a_slow_answer_holds_back_no_other_batch_and_a_batch_stays_a_batch_although_ray_joins_blocks(catalogue):
    config, store = catalogue
    uri = ledger.open_ledger(store)
    with serve_endpoint() as server:
        found: list = []
        miner = _miner(server, concurrency=2)
        thread = threading.Thread(target=lambda: found.extend(_counts(config, store, uri, miner)))
        thread.start()
        _wait_for_rows(uri, 149)
        assert thread.is_alive()
        server.release.set()
        thread.join()
    assert server.most_at_once == 2
    # a block per batch, so that progress is told while others are asked, with a row per status: all are "ok"
    assert sorted([row["rows"] for row in block] for block in found) == [[6], *[[8]] * 18]
    assert artifacts.open_parts(uri).count_rows() == 150
    # one client for all: were there one per batch, each would probe alone and connect anew
    assert len(artifacts.list_parts(uri)) < 150


@pytest.mark.ray
def test_an_engine_larger_than_any_node_is_an_error_before_it_is_waited_for():
    # Ray waited for ever for more GPUs than a node has
    call = (
        "import ray; ray.init(num_gpus=2, num_cpus=1, include_dashboard=False, log_to_driver=False)\n"
        "from digr.config.interests import VllmMiner\n"
        "from jobs.asking.vllm_engine import check_tensor_parallel\n"
        "check_tensor_parallel(VllmMiner(name='m', model='x', tensor_parallel=2))\n"
        "check_tensor_parallel(VllmMiner(name='m', model='x', tensor_parallel=4))\n"
    )
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=False)
    assert "m: tensor_parallel = 4, but the largest node has 2 GPUs" in done.stderr
