"""The load generator against small servers over real HTTP."""

import asyncio
import json
import socket
from collections import Counter

import numpy as np
import pytest
from fastapi import FastAPI, Request, Response

from serve.asking.load import Load, Second, Summary, arrival_times, send_load
from tests.serve.http_server import serve_over_http


def _send(api: FastAPI, bodies: list[bytes], **changes) -> tuple[Summary, list[Second]]:
    with serve_over_http(api) as url:
        load = Load(**{"url": url, "bodies": bodies, "rate": 100.0, "seconds": 1.0} | changes)
        seconds: list[Second] = []
        return asyncio.run(send_load(load, np.random.default_rng(0), seconds.append)), seconds


def test_arrivals_are_those_of_a_poisson_process():
    times = arrival_times(500.0, 40.0, np.random.default_rng(0))
    assert np.all(np.diff(times) >= 0) and times[0] >= 0 and times[-1] < 40
    assert len(times) == pytest.approx(20_000, abs=4 * 20_000**0.5)
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(1 / 500, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 500, rel=0.03)  # an exponential's deviation is its mean
    counts = np.bincount(times.astype(int), minlength=40)
    assert 0.5 < counts.var() / counts.mean() < 1.7


def test_a_stall_is_felt_by_all_requests_that_were_due_in_it():
    api, lock = FastAPI(), asyncio.Lock()
    seen = Counter[str]()

    @api.post("/")
    async def stalls_once() -> Response:
        async with lock:
            seen["requests"] += 1
            if seen["requests"] == 20:
                await asyncio.sleep(0.6)
        return Response()

    summary, seconds = _send(api, [b"{}"])
    assert summary.failures == {} and summary.ok == summary.sent == seen["requests"]
    # a closed loop would have one slow request; here about 60 were due during the stall
    assert summary.max_in_flight > 30
    assert summary.latency_seconds["max"] > 0.5
    assert summary.latency_seconds["p90"] > 0.3
    assert sum(second.sent for second in seconds) == summary.sent
    assert sum(second.ok for second in seconds) == summary.ok


def test_every_failure_is_counted_by_its_kind():
    api, asked = FastAPI(), Counter[str]()

    @api.post("/")
    async def answers(request: Request) -> Response:
        wanted = await request.json()
        asked[wanted] += 1
        if wanted == "hang":
            await asyncio.sleep(10)
        problem = json.dumps({"type": "overloaded"})
        return {
            "good": Response(),
            "busy": Response(problem, 429, media_type="application/problem+json"),
            "broken": Response("[]", 503, media_type="application/problem+json"),
            "plain": Response("oops", 500),
            "hang": Response(),
        }[wanted]

    bodies = [json.dumps(kind).encode() for kind in ("good", "busy", "broken", "plain", "hang")]
    summary, _ = _send(api, bodies, timeout_seconds=2.0)
    assert set(summary.failures) == {"429 overloaded", "503 with a broken problem", "500", "timeout"}
    # a request that a slow machine does not get to in two seconds is a timeout that the server never sees
    assert summary.ok + sum(summary.failures.values()) == summary.sent >= asked.total()
    kinds = {"busy": "429 overloaded", "broken": "503 with a broken problem", "plain": "500"}
    counted = {"good": summary.ok} | {word: summary.failures[kind] for word, kind in kinds.items()}
    assert all(0 < number <= asked[word] for word, number in counted.items())  # a slow machine may make any of them a timeout
    assert summary.failures["timeout"] == summary.sent - sum(counted.values()) >= asked["hang"]
    assert json.loads(summary.json())["failures"] == summary.failures


def test_a_server_that_is_not_there_is_a_failure_of_the_connection():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        load = Load(f"http://127.0.0.1:{probe.getsockname()[1]}", [b"{}"], rate=50, seconds=0.3)
        summary = asyncio.run(send_load(load, np.random.default_rng(0)))
    assert summary.failures == {"connection: ClientConnectorError": summary.sent}
    assert summary.latency_seconds is None and json.loads(summary.json())["ok"] == 0


def test_a_retryable_answer_is_tried_again_after_the_time_it_says():
    api, seen = FastAPI(), Counter[bytes]()

    @api.post("/")
    async def busy_at_first(request: Request) -> Response:
        seen[await request.body()] += 1
        return Response(status_code=200 if seen.total() > 10 else 503, headers={"Retry-After": "1"})

    summary, _ = _send(api, [b"{}"], retries=1, rate=40.0, seconds=0.6)
    assert summary.failures == {} and summary.retried == {"503": 10}
    assert summary.latency_seconds["max"] > 1.0  # the wait counts
    seen.clear()
    summary, _ = _send(api, [b"{}"], rate=40.0, seconds=0.6)
    assert summary.failures == {"503": 10} and summary.retried == {}


@pytest.mark.parametrize(
    ("changes", "match"), [({"rate": 0}, "rate = 0 and seconds = 1 must both be above 0"), ({"bodies": []}, "no bodies")]
)
def test_a_load_that_cannot_be_sent_is_an_error(changes, match):
    load = Load(**{"url": "http://127.0.0.1:9", "bodies": [b"{}"], "rate": 1.0, "seconds": 1.0} | changes)
    with pytest.raises(ValueError, match=match):
        asyncio.run(send_load(load, np.random.default_rng(0)))
