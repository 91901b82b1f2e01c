"""The endpoint over real HTTP, on a tiny run with a policy of random weights."""

import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx
import numpy as np
import pyarrow as pa
import pytest
from ray import serve

from digr import artifacts
from digr.artifacts import Store
from digr.policy.beam import recommend
from digr.policy.vocabulary import history_prompt, sid_texts
from digr.sids.trie import load_trie
from serve.app import app
from serve.catalogue import assemble, read_run
from serve.settings import AppArguments, VersionSettings
from tests.serve.tiny_run import BEAM_WIDTH, MAX_HISTORY, write_run

pytestmark = pytest.mark.ray


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


PORT = _free_port()
URL = f"http://127.0.0.1:{PORT}"


@pytest.fixture(scope="module")
def store(tmp_path_factory, ray_local) -> Iterator[Store]:
    store = write_run(str(tmp_path_factory.mktemp("run")))
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(app(AppArguments(run_dir=store.root, beam_width=BEAM_WIDTH, num_threads=1)), name="digr", route_prefix="/")
    yield store
    serve.shutdown()


def _ask(**body) -> httpx.Response:
    return httpx.post(f"{URL}/recommend", json=body, timeout=30)


def test_the_served_list_is_the_offline_list(store):
    run, trie = assemble(read_run(VersionSettings(run_dir=store.root), "cpu")), load_trie(store)
    rng = np.random.default_rng(1)
    for length in (1, 2, 5, 9):
        places = rng.integers(0, trie.num_items, length)
        prompt = history_prompt(sid_texts(trie.codes[places[-MAX_HISTORY:]].numpy()))
        offline = recommend(run.policy, trie, [prompt], 10, BEAM_WIDTH)[0]
        reply = _ask(history=trie.item_ids.take(pa.array(places)).to_pylist(), k=10)
        assert reply.status_code == 200
        served = reply.json()["items"]
        assert [item["item_id"] for item in served] == offline.item_ids
        assert [item["score"] for item in served] == pytest.approx(offline.scores, abs=1e-5)


def test_concurrent_requests_get_the_lists_they_get_alone(store):
    import asyncio

    histories = [[f"item{index:02d}", f"item{index + 1:02d}"][: 1 + index % 2] for index in range(40)]

    async def ask_all() -> list[dict]:
        async with httpx.AsyncClient(timeout=60) as client:
            replies = await asyncio.gather(*(client.post(f"{URL}/recommend", json={"history": history}) for history in histories))
        return [reply.json()["items"] for reply in replies]

    for history, together in zip(histories, asyncio.run(ask_all()), strict=True):
        alone = _ask(history=history).json()["items"]
        assert [item["item_id"] for item in together] == [item["item_id"] for item in alone]


def test_items_come_with_titles_and_shared_interests(store):
    items = _ask(history=["item03"], k=12).json()["items"]
    assert len(items) == 12
    for item in items:
        assert item["title"] == f"Title {item['item_id']}"
        shares = int(item["item_id"].removeprefix("item")) % 3 == 0
        assert item["reasons"] == (["interest 0"] if shares else [])


def test_health_says_what_is_served(store):
    health = httpx.get(f"{URL}/healthz", timeout=10).json()
    digest = artifacts.require(store, "policy_sft").digest
    assert health == {"status": "ok", "model": "main", "policy": "policy_sft", "policy_digest": digest, "num_items": 60}


def _client(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "serve.client", "--url", URL, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_client_prints_the_list_or_the_problem(store):
    good = _client("recommend", "--history", "item03", "--k", "2")
    assert good.returncode == 0
    assert [line.split()[2] for line in good.stdout.splitlines()] == [
        item["item_id"] for item in _ask(history=["item03"], k=2).json()["items"]
    ]
    bad = _client("recommend", "--history", "ghost")
    assert (bad.returncode, bad.stdout) == (1, "")
    assert 'not in the catalogue; leave them out, or send unknown="ignore": ghost' in bad.stderr
