"""The endpoint over real HTTP, on a tiny run with a policy of random weights."""

import subprocess
import sys
from collections.abc import Iterator

import httpx
import numpy as np
import pyarrow as pa
import pytest
from ray import serve

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config.policy import PolicyConfig
from digr.policy.beam import recommend
from digr.policy.model import build_scratch_policy
from digr.policy.vocabulary import history_prompt, sid_texts
from digr.sids.trie import load_trie
from serve.app import AppArguments, app
from serve.catalogue import load_run

pytestmark = pytest.mark.ray

PORT = 8765
URL = f"http://127.0.0.1:{PORT}"
LEVEL_SIZES = [8, 8, 8]
MAX_HISTORY = 5
BEAM_WIDTH = 12


def _put(store: Store, name: str, columns: dict, **manifest) -> None:
    artifacts.commit(store, Manifest(name=name, rows=artifacts.write_table(store, name, pa.table(columns)), **manifest))


def _write_run(root: str) -> Store:
    store, num = Store(root), 60
    ids = [f"item{index:02d}" for index in range(num)]
    numbers = np.random.default_rng(0).permutation(8**3)[:num]
    codes = np.stack([numbers // 64, numbers // 8 % 8, numbers % 8], axis=1).astype(np.int32)
    _put(store, "items", {"item_id": ids, "title": [f"Title {item}" for item in ids]})
    _put(
        store,
        "item_sids",
        {"item_id": ids, "codes": pa.array(codes.tolist(), pa.list_(pa.int32()))},
        facts={"level_sizes": LEVEL_SIZES},
    )
    histories = {"example_id": ["x"], "user_id": ["u"], "split": ["test"], "history": [ids[:1]], "target": ids[1:2]}
    _put(store, "histories", histories, config={"data": {"max_history": MAX_HISTORY}})
    labels = {
        "owner": ["item"] * num,
        "owner_id": ids,
        "rank": pa.array([0] * num, pa.int32()),
        "interest": [f"interest {index % 3}" for index in range(num)],
        "probability": [0.9] * num,
        "label": pa.array([1] * num, pa.int8()),
        "labeler": ["classifier"] * num,
    }
    _put(store, "interest_labels", labels)
    artifacts.begin(store, "policy_sft")
    policy = build_scratch_policy(PolicyConfig(hidden_dim=32, num_layers=2, num_heads=2, max_tokens=64), LEVEL_SIZES, seed=3)
    policy.save(store.uri("policy_sft"))
    artifacts.commit(store, Manifest(name="policy_sft"))
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory, ray_local) -> Iterator[Store]:
    store = _write_run(str(tmp_path_factory.mktemp("run")))
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(app(AppArguments(run_dir=store.root, beam_width=BEAM_WIDTH, num_threads=1)), name="digr", route_prefix="/")
    yield store
    serve.shutdown()


def _ask(**body) -> httpx.Response:
    return httpx.post(f"{URL}/recommend", json=body, timeout=30)


def test_the_served_list_is_the_offline_list(store):
    run, trie = load_run(store.root, "cpu"), load_trie(store)
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
    assert health == {"status": "ok", "policy": "policy_sft", "policy_digest": digest, "num_items": 60}


@pytest.mark.parametrize(
    ("body", "cause", "detail"),
    [
        ({"history": ["item01", "ghost", "ghost"]}, "unknown-items", "2 of the history's items are not in the catalogue"),
        ({"history": []}, "invalid-request", "history: List should have at least 1 item"),
        ({"history": ["item01"] * 1001}, "invalid-request", "history: List should have at most 1000 items"),
        ({"history": ["item01"], "k": 0}, "invalid-request", "k: Input should be greater than or equal to 1"),
        ({"history": ["item01"], "k": 13}, "k-too-large", "k is 13, at most the beam width 12 can be listed"),
        ({"history": ["item01"], "topk": 3}, "invalid-request", "topk: Extra inputs are not permitted"),
        ({"history": [7]}, "invalid-request", "history.0: Input should be a valid string"),
        ({}, "invalid-request", "history: Field required"),
    ],
)
def test_what_cannot_be_answered_is_a_problem_with_its_cause(store, body, cause, detail):
    reply = _ask(**body)
    assert reply.status_code == 422
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert (problem["type"], problem["status"]) == (cause, 422)
    assert detail in problem["detail"]
    if cause == "unknown-items":
        assert problem["unknown_items"] == ["ghost"]


def test_a_body_that_is_not_json_is_a_problem(store):
    reply = httpx.post(f"{URL}/recommend", content=b"{", headers={"content-type": "application/json"}, timeout=10)
    assert (reply.status_code, reply.json()["type"]) == (422, "invalid-request")


def _client(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "serve.client", "--url", URL, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_client_prints_the_list_or_the_problem(store):
    good = _client("--history", "item03", "--k", "2")
    assert good.returncode == 0
    assert [line.split()[2] for line in good.stdout.splitlines()] == [
        item["item_id"] for item in _ask(history=["item03"], k=2).json()["items"]
    ]
    bad = _client("--history", "ghost")
    assert (bad.returncode, bad.stdout) == (1, "")
    assert "not in the catalogue; leave them out: ghost" in bad.stderr
