"""The endpoint over real HTTP, on a tiny run with a policy of random weights."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator

import httpx
import numpy as np
import psutil
import pyarrow as pa
import pytest
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from digr import artifacts
from digr.artifacts import Store
from digr.policy.decoding.search import recommend
from digr.policy.vocabulary import history_prompt, sid_texts
from digr.sids.trie import load_trie
from serve.app import app
from serve.items.catalogue import assemble, read_run
from serve.keys import make_key, written
from serve.settings import AppArguments, VersionSettings
from tests.patience import CEILING_SECONDS, POLL_SECONDS, wait_until
from tests.serve.tiny_run import BEAM_WIDTH, MAX_HISTORY, write_run

pytestmark = pytest.mark.ray


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


PORT = _free_port()
URL = f"http://127.0.0.1:{PORT}"


NUM_REPLICAS, MAX_PENDING = 2, 16


@pytest.fixture(scope="module")
def store(tmp_path_factory, ray_local) -> Iterator[Store]:
    store = write_run(str(tmp_path_factory.mktemp("run")))
    write_run(f"{store.root}/next", seed=7)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    _deploy(store, {"main": ""})
    wait_until(lambda: _is_ready() and len(_replicas()) == NUM_REPLICAS)
    yield store
    serve.shutdown()


def _deploy(store: Store, models: dict[str, str], default: str = "main", num_replicas: int = NUM_REPLICAS) -> None:
    """Deploy, or change a running deployment without restarting it; models are folders below the run."""
    arguments = AppArguments(
        models={name: VersionSettings(run_dir=f"{store.root}/{folder}") for name, folder in models.items()},
        default_model=default,
        beam_width=BEAM_WIDTH,
        num_threads=1,
        max_pending=MAX_PENDING,
        deadline_seconds=600,
        state_dir=f"{store.root}/state",
    )
    deployment = {"name": "Recommender", "num_replicas": num_replicas, "user_config": arguments.resolved().live().model_dump()}
    deployment |= {"health_check_timeout_s": CEILING_SECONDS, "graceful_shutdown_timeout_s": CEILING_SECONDS}
    fixed = arguments.model_copy(update={"models": {}, "default_model": None, "run_dir": store.root}).model_dump()
    config = {"name": "digr", "route_prefix": "/", "import_path": "serve.app:app", "args": fixed, "deployments": [deployment]}
    # what `serve deploy` does; serve.run would start new replicas at every call
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [config]}))


def _is_ready() -> bool:
    """Whether a replica answers; a proxy that has none lets a request wait, and one that starts refuses it."""
    try:
        return httpx.get(f"{URL}/readyz", timeout=POLL_SECONDS).status_code == 200
    except httpx.TransportError:
        return False


def _get(path: str) -> httpx.Response:
    return httpx.get(f"{URL}{path}", timeout=CEILING_SECONDS)


def _post(path: str, body: dict) -> httpx.Response:
    return httpx.post(f"{URL}{path}", json=body, timeout=CEILING_SECONDS)


def _ask(**body) -> httpx.Response:
    return _post("/recommend", body)


def test_health_says_what_is_served(store):
    health = _get("/healthz").json()
    digest = artifacts.require(store, "policy_sft").digest
    assert health == {"status": "ok", "model": "main", "policy": "policy_sft", "policy_digest": digest, "num_items": 60}


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
    histories = [[f"item{index:02d}", f"item{index + 1:02d}"][: 1 + index % 2] for index in range(MAX_PENDING)]

    async def ask_all() -> list[dict]:
        async with httpx.AsyncClient(timeout=CEILING_SECONDS) as client:
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


def test_an_openai_client_lists_models_and_completes_semantic_ids(store):
    from openai import OpenAI, UnprocessableEntityError

    client = OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["main"]
    prompt = _get("/v1/items/item03").json()["sid_text"]
    reply = client.completions.create(model="main", prompt=prompt, n=2, temperature=0)
    items = _ask(history=["item03"], k=2).json()["items"]
    levels = "abc"
    texts = ["".join(f"<{levels[level]}_{code}>" for level, code in enumerate(item["sid"])) for item in items]
    assert [choice.text for choice in reply.choices] == texts
    with pytest.raises(UnprocessableEntityError) as caught:
        client.completions.create(model="main", prompt="hello")
    assert caught.value.response.json()["type"] == "invalid-prompt"


class Clients:
    """Ask for lists again and again until the block ends, from several threads, and keep every answer."""

    def __init__(self, num_threads: int = 3) -> None:
        self.answers: list[httpx.Response] = []
        self.errors: list[str] = []
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(num_threads)]

    def _ask(self) -> None:
        with httpx.Client(timeout=CEILING_SECONDS) as client:
            while not self._end.is_set():
                try:
                    self.answers.append(client.post(f"{URL}/v1/recommend", json={"history": ["item01"], "k": 3}))
                except httpx.HTTPError as error:
                    self.errors.append(repr(error))
                self._end.wait(0.02)  # leaves some of the machine to the replicas

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, enough) -> None:
        """Wait until the answers so far are enough."""
        wait_until(lambda: enough(list(self.answers)), lambda: (self.statuses(), self.errors))

    def statuses(self) -> Counter:
        """Count the answers by status."""
        return Counter(answer.status_code for answer in self.answers)


def _models(answers: list[httpx.Response]) -> list[str]:
    return [answer.json()["model"] for answer in answers]


def test_a_version_is_loaded_promoted_and_rolled_back_under_load_without_a_failed_request(store):
    replicas = {one.pid for one in _replicas()}
    with Clients() as clients:
        clients.wait_for(lambda answers: len(answers) > 5)
        _deploy(store, {"main": "", "next": "next"}, default="next")
        clients.wait_for(lambda answers: _models(answers[-10:]) == ["next"] * 10)
        # the configuration gave the new default to all replicas; a promotion changes it back and forth
        assert _post("/v1/models", {"action": "promote", "model": "main"}).status_code == 200
        clients.wait_for(lambda answers: _models(answers[-10:]) == ["main"] * 10)
        assert _post("/v1/models", {"action": "roll_back"}).status_code == 200
        clients.wait_for(lambda answers: _models(answers[-10:]) == ["next"] * 10)
        _deploy(store, {"main": ""})
        clients.wait_for(lambda answers: _models(answers[-10:]) == ["main"] * 10)
    assert clients.errors == []
    assert set(clients.statuses()) == {200}
    assert {one.pid for one in _replicas()} == replicas  # none was restarted


def _replicas() -> list[psutil.Process]:
    found = psutil.process_iter(["cmdline"])
    return [one for one in found if "ServeReplica:digr:Recommender" in " ".join(one.info["cmdline"] or []) and _is_ours(one)]


def _is_ours(process: psutil.Process) -> bool:
    return os.getpid() in [parent.pid for parent in process.parents()]


def test_a_replica_that_is_killed_under_load_loses_no_request(store):
    assert len(_replicas()) == NUM_REPLICAS
    with Clients() as clients:
        clients.wait_for(lambda answers: len(answers) > 5)
        victim = _replicas()[0]
        victim.send_signal(signal.SIGKILL)
        asked = len(clients.answers)
        clients.wait_for(lambda answers: len(answers) > asked + 50)
        wait_until(lambda: len(_replicas()) == NUM_REPLICAS and victim.pid not in [one.pid for one in _replicas()])
    assert clients.errors == []
    statuses = clients.statuses()
    assert set(statuses) <= {200, 503}, statuses
    for answer in clients.answers:
        if answer.status_code == 503:  # the one error that can be retried
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["retry-after"] == "1"


def test_more_requests_than_may_wait_get_a_429_at_once_and_the_others_their_lists(store):
    async def ask_all() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(timeout=CEILING_SECONDS, limits=limits) as client:
            bodies = [{"history": [f"item{index % 60:02d}"]} for index in range(200)]
            return await asyncio.gather(*(client.post(f"{URL}/v1/recommend", json=body) for body in bodies))

    replies = asyncio.run(ask_all())
    while all(reply.status_code == 200 for reply in replies):  # so slow a client that the line never was full
        replies = asyncio.run(ask_all())
    assert {reply.status_code for reply in replies} == {200, 429}
    for reply in replies:
        if reply.status_code == 429:
            assert reply.json()["type"] == "overloaded"
            assert int(reply.headers["retry-after"]) >= 1
    assert _ask(history=["item01"]).status_code == 200


def test_an_added_item_becomes_recommendable_on_all_replicas(store):
    item = {"item_id": "lamp", "title": "A brass lamp", "categories": ["lamps"], "interests": ["warm light"]}
    assert _post("/v1/items", item).status_code == 200

    def everywhere() -> bool:
        body = {"history": ["item01"], "allow": {"categories": ["lamps"]}}
        replies = [_post("/v1/recommend", body) for _ in range(16)]
        return all(reply.status_code == 200 and reply.json()["items"][0]["item_id"] == "lamp" for reply in replies)

    wait_until(everywhere)


def test_the_metrics_show_all_replicas(store):
    def shown() -> set[str]:
        assert _ask(history=["item01"]).status_code == 200  # a replica that was asked nothing has nothing to show
        text = _get("/metrics").text
        return set(re.findall(r'digr_requests_total\{replica="([^"]+)",route="/recommend",status="200"', text))

    wait_until(lambda: len(shown()) >= NUM_REPLICAS)


def _client(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "serve.client", *arguments, "--url", URL]
    return subprocess.run(command, capture_output=True, text=True, timeout=CEILING_SECONDS)


def test_the_client_prints_the_list_or_the_problem(store):
    good = _client("ask", "--history", "item03", "--k", "2")
    assert good.returncode == 0
    assert [line.split()[2] for line in good.stdout.splitlines()[1:]] == [
        item["item_id"] for item in _ask(history=["item03"], k=2).json()["items"]
    ]
    bad = _client("ask", "--history", "ghost")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert 'not in the catalogue; leave them out, or send unknown="ignore": ghost' in bad.stderr


def test_a_replica_that_is_taken_away_under_load_finishes_what_it_began(store):
    with Clients() as clients:
        clients.wait_for(lambda answers: len(answers) > 5)
        _deploy(store, {"main": ""}, num_replicas=1)
        wait_until(lambda: len(_replicas()) == 1)
        asked = len(clients.answers)
        clients.wait_for(lambda answers: len(answers) > asked + 20)
    assert clients.errors == []
    assert set(clients.statuses()) == {200}


def test_under_a_prefix_a_read_key_changes_nothing_and_all_else_works(store, tmp_path):
    """A read key could promote and add items under any `route_prefix` but `/`."""
    made = {role: make_key(role, role) for role in ("read", "admin")}
    (tmp_path / "keys.toml").write_text("".join(written(record) for _, record in made.values()))
    arguments = AppArguments(run_dir=store.root, beam_width=BEAM_WIDTH, num_threads=1, keys_file=str(tmp_path / "keys.toml"))
    arguments = arguments.model_copy(update={"state_dir": str(tmp_path / "state")})
    serve.run(app(arguments), name="shop", route_prefix="/shop")

    def ask(role: str | None, method: str, path: str, body: dict | None = None) -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {made[role][0]}"} if role else {}
        reply = httpx.request(method, f"{URL}/shop{path}", json=body, headers=headers, timeout=CEILING_SECONDS)
        return reply.status_code, reply.json().get("type", "") if reply.headers["content-type"].endswith("json") else reply.text

    item, lists = {"item_id": "brush", "title": "A brush"}, {"history": ["item01"], "k": 1}
    assert ask("read", "POST", "/v1/models", {"action": "roll_back"}) == (403, "forbidden")
    assert ask("read", "POST", "/v1/items", item) == (403, "forbidden")
    assert ask(None, "POST", "/v1/recommend", lists) == (401, "unauthorised")
    assert ask("read", "POST", "/v1/recommend", lists)[0] == 200
    assert ask("admin", "POST", "/v1/items", item)[0] == 200
    assert [ask(None, "GET", path)[0] for path in ("/", "/docs", "/explorer/app.js", "/healthz", "/readyz")] == [200] * 5
    wait_until(lambda: 'route="/v1/recommend",status="200"' in ask("read", "GET", "/metrics")[1])
    (tmp_path / "keys.toml").write_text(written(made["read"][1]))
    wait_until(lambda: ask("admin", "GET", "/v1/models") == (401, "unauthorised"))
    serve.delete("shop")
