"""Keys and what is left of their rates; and who is asked where there are no keys."""

import contextlib
import logging
import os

import pytest

from serve.contract.problems import ProblemError
from serve.keys import TokenBucket, make_key, written
from serve.middleware.callers import KeyRing
from serve.settings import AppArguments
from tests.serve.tiny_run import BEAM_WIDTH, client_of, start_service

SCOPE = {
    "type": "http",
    "method": "GET",
    "path": "/",
    "http_version": "1.1",
    "client": ("127.0.0.1", 1),
    "server": ("127.0.0.1", 2),
}


def _record(name: str, role: str = "read", rate: float = 1.0, burst: int = 4) -> tuple[str, str]:
    key, record = make_key(name, role)
    return key, written(record.model_copy(update={"requests_per_second": rate, "burst": burst}))


def _ask(ring: KeyRing, key: str):
    return ring.check(SCOPE, {"authorization": f"Bearer {key}"}, "read")


def _num_let_in(ring: KeyRing, key: str, num_asked: int = 1000) -> int:
    """Return how many of the requests of one moment are let in."""
    num_let_in = 0
    with contextlib.suppress(ProblemError):
        while num_let_in < num_asked:
            _ask(ring, key)
            num_let_in += 1
    return num_let_in


def test_a_key_taken_out_of_the_file_is_of_no_use_any_more_and_a_new_one_is(tmp_path):
    path = tmp_path / "keys.toml"
    (one, first), (two, second) = _record("aaa"), _record("bbb")
    path.write_text(first)
    stamp = path.stat().st_mtime_ns
    ring = KeyRing(str(path))
    assert _ask(ring, one).name == "aaa"
    path.write_text(second)
    os.utime(path, ns=(stamp, stamp))  # of the same size and time as before
    ring.refresh()
    assert _ask(ring, two).name == "bbb"
    with pytest.raises(ProblemError, match="send `Authorization: Bearer <key>` with a key of this deployment"):
        _ask(ring, one)


def test_a_file_that_cannot_be_read_leaves_the_keys_before(tmp_path):
    path = tmp_path / "keys.toml"
    key, record = _record("one")
    path.write_text(record)
    ring = KeyRing(str(path))
    for content in (None, "x", "keys = []"):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        with pytest.raises(ValueError, match="keys_file = "):
            ring.refresh()
    assert _ask(ring, key).name == "one"


def test_a_change_of_the_file_fills_no_bucket(tmp_path):
    """Whoever made the operator touch the key file had a full rate again."""
    now, path = [0.0], tmp_path / "keys.toml"
    (one, first), (two, second) = _record("one"), _record("two")
    path.write_text(first)
    ring = KeyRing(str(path), lambda: now[0])
    assert _num_let_in(ring, one) == 4
    path.write_text(first + second)
    ring.refresh()
    assert (_num_let_in(ring, one), _num_let_in(ring, two)) == (0, 4)
    now[0] = 2.0
    assert _num_let_in(ring, one) == 2
    path.write_text(first.replace("burst = 4", "burst = 8"))
    ring.refresh()
    assert _num_let_in(ring, one) == 0
    now[0] = 100.0
    assert _num_let_in(ring, one) == 8


def test_a_rate_holds_for_all_replicas_together(tmp_path):
    now, path = [0.0], tmp_path / "keys.toml"
    key, record = _record("one", rate=4.0, burst=100)
    path.write_text(record)
    rings = [KeyRing(str(path), lambda: now[0]) for _ in range(4)]
    for ring in rings:
        ring.share_rates(4)
    assert [_num_let_in(ring, key) for ring in rings] == [25] * 4
    now[0] = 3.0  # 12 more, in the deployment
    assert [_num_let_in(ring, key) for ring in rings] == [3] * 4
    for ring in rings[:2]:
        ring.share_rates(2)  # the others went away
    now[0] = 4.0
    assert [_num_let_in(ring, key) for ring in rings[:2]] == [2] * 2
    now[0] = 1000.0
    assert [_num_let_in(ring, key) for ring in rings[:2]] == [50] * 2


def test_a_replica_of_many_still_lets_single_requests_in(tmp_path):
    now, path = [0.0], tmp_path / "keys.toml"
    key, record = _record("one", rate=1.0, burst=1)
    path.write_text(record)
    ring = KeyRing(str(path), lambda: now[0])
    ring.share_rates(10)
    assert _num_let_in(ring, key) == 1
    now[0] = 10.0
    assert _num_let_in(ring, key) == 1


def test_more_than_the_burst_pass_a_full_bucket_only_and_are_paid_off():
    now = [0.0]
    bucket = TokenBucket(rate=2.0, burst=10, clock=lambda: now[0])
    assert (bucket.take(), bucket.take(63, taken=1)) == (0, 0)  # a batch of 64
    assert bucket.take() == (54 + 1) / 2
    now[0] = 28.0
    assert (bucket.take(), bucket.take(63, taken=1)) == (0, pytest.approx(8 / 2))
    now[0] = 27.0 + 32.0
    assert (bucket.take(), bucket.take(63, taken=1)) == (0, 0)


@pytest.fixture
def limited(tiny_run, tmp_path):
    """Serve with one key of 66 requests at once, and a clock that stands."""
    now = [0.0]
    key, record = _record("shop", rate=1.0, burst=66)
    (tmp_path / "keys.toml").write_text(record)
    service = start_service(AppArguments(run_dir=tiny_run.root, beam_width=BEAM_WIDTH))
    client = client_of(service, "10.1.2.3", KeyRing(str(tmp_path / "keys.toml"), lambda: now[0]))
    client.headers["Authorization"] = f"Bearer {key}"
    return client, now


def test_a_batch_costs_as_much_as_its_lists(limited):
    """A batch of 64 cost as much as one request."""
    client, now = limited
    batch = {"requests": [{"history": ["item01"], "k": 1}] * 64}
    assert client.post("/v1/recommend/batch", json=batch).status_code == 200
    refused = client.post("/v1/recommend/batch", json=batch)
    assert (refused.status_code, refused.json()["type"]) == (429, "rate-limited")
    wanted = "the key 'shop' has used up its rate, and 64 lists cost as much as 64 requests; try again in 62 s"
    assert refused.json()["detail"] == wanted
    assert client.post("/v1/recommend", json=batch["requests"][0]).status_code == 200
    assert client.post("/v1/recommend", json=batch["requests"][0]).status_code == 429
    now[0] = 64.0
    assert client.post("/v1/recommend/batch", json=batch).status_code == 200


def test_prompts_of_a_completion_cost_as_much_as_requests(limited):
    client, _ = limited
    sid = client.get("/v1/items/item03").json()["sid_text"]
    for _ in range(4):
        assert client.post("/v1/completions", json={"prompt": [sid] * 16, "n": 1}).status_code == 200
    assert client.post("/v1/completions", json={"prompt": [sid] * 2, "n": 1}).status_code == 429


@pytest.mark.parametrize(
    "headers",
    [
        {"Forwarded": "for=10.0.0.1"},
        {"X-Forwarded-For": "10.0.0.1"},
        {"X-Forwarded-Proto": "https"},
        {"X-Real-IP": "10.0.0.1"},
        {"Via": "1.1 proxy"},
        {"CF-Connecting-IP": "10.0.0.1"},
        {"True-Client-IP": "10.0.0.1"},
        {"X-Amzn-Trace-Id": "x"},
        {"X-Envoy-External-Address": "10.0.0.1"},
        {"X-Original-Host": "shop.example"},
        {"Host": "shop.example"},
        {"Referer": "https://shop.example/page"},
        {"Origin": "https://shop.example"},
    ],
)
def test_without_keys_a_proxy_on_this_machine_opens_nothing(client, headers):
    """Behind a proxy on the same machine everyone came from 127.0.0.1."""
    reply = client.get("/v1/models", headers=headers)
    assert (reply.status_code, reply.json()["type"]) == (401, "unauthorised")
    assert "no proxy may stand before it; for anyone else set keys_file in serve/config.yaml" in reply.json()["detail"]


def test_without_keys_the_old_protocol_that_proxies_speak_opens_nothing():
    with pytest.raises(ProblemError, match=r"this request seems to come through a proxy \(it is HTTP/1\.0\)"):
        KeyRing("").check(SCOPE | {"http_version": "1.0"}, {"host": "127.0.0.1"}, "read")
    assert KeyRing("").check(SCOPE, {"host": "127.0.0.1:8000"}, "read").name == ""


@pytest.mark.parametrize("end", ["client", "server"])
def test_without_keys_both_ends_are_of_this_machine(end):
    for address in (("10.1.2.3", 1), ("/run/socket", None), None):
        with pytest.raises(ProblemError, match="this deployment has no keys"):
            KeyRing("").check(SCOPE | {end: address}, {"host": "localhost"}, "read")


def test_with_keys_a_proxy_may_stand_before_it(limited):
    client, _ = limited
    assert client.get("/v1/models", headers={"X-Forwarded-For": "10.0.0.1", "Host": "shop.example"}).status_code == 200


def test_a_deployment_without_keys_says_so_at_its_start(caplog):
    with caplog.at_level(logging.WARNING):
        KeyRing("")
    assert "this deployment has no keys, so it answers only programs and browsers of this machine" in caplog.text
