"""Open-loop load: requests leave at the times of a Poisson process, whether or not earlier ones have been answered.

Latency counts from the intended time of a request, so a stalled generator or server cannot hide the wait of later requests
(no coordinated omission). Every request is counted exactly once: as a success, or as a failure by kind.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import aiohttp
import numpy as np
from jaxtyping import Float

from serve.contract.schemas import RecommendRequest

RETRYABLE = (429, 502, 503, 504)
"""Statuses that ask to come again; so does a lost connection."""
PERCENTILES = (50, 90, 99, 99.9)


class Load(NamedTuple):
    """What is sent, and how fast."""

    url: str
    """Address of the route."""
    bodies: Sequence[bytes]
    """Bodies of POST requests; each request draws one."""
    rate: float
    """Requests per second in the long run."""
    seconds: float
    """How long requests are sent; their answers are waited for."""
    timeout_seconds: float = 30.0
    headers: Mapping[str, str] = MappingProxyType({})
    retries: int = 0
    """How often a request is sent again that failed with a retryable answer."""


class Summary(NamedTuple):
    """Outcomes of the requests."""

    sent: int
    ok: int
    failures: dict[str, int]
    """By kind: `429 overloaded` (status and the problem's type), `timeout`, `connection: <what>`."""
    retried: dict[str, int]
    """Answers that led to another try, by kind; not failures."""
    seconds: float
    """From the first intended time to the last answer."""
    offered_rate: float
    ok_rate: float
    """Successes per second."""
    latency_seconds: dict[str, float] | None
    """Percentiles and maximum over the successes, from the intended times; None without any."""
    late_p99_seconds: float
    """Delay of the generator itself; latencies are valid only if it is small in comparison."""
    max_in_flight: int

    def json(self) -> str:
        """Write one line."""
        return json.dumps(self._asdict())


class Second(NamedTuple):
    """What happened within one second; the last one is as long as its rest."""

    second: int
    sent: int
    ok: int
    failed: int
    in_flight: int
    p50_seconds: float
    """Of the successes that came in this second; NaN without any."""
    p99_seconds: float


def arrival_times(rate: float, seconds: float, rng: np.random.Generator) -> Float[np.ndarray, " T"]:
    """Draw the times of a Poisson process, ascending, below `seconds`.

    Raises:
        ValueError: rate or seconds is not positive.
    """
    if rate <= 0 or seconds <= 0:
        raise ValueError(f"load: rate = {rate:g} and seconds = {seconds:g} must both be above 0")
    number = rng.poisson(rate * seconds)
    return np.sort(rng.uniform(0, seconds, number))  # given their number, arrivals are uniform


class _Tally:
    """Counts of a running load."""

    def __init__(self) -> None:
        self.sent = self.in_flight = self.max_in_flight = 0
        self.failures, self.retried = Counter[str](), Counter[str]()
        self.latencies, self.late = list[float](), list[float]()
        self.reported = (0, 0, 0)

    def second(self, number: int) -> Second:
        """Return what happened since the last call."""
        sent, ok, failed = self.sent, len(self.latencies), self.failures.total()
        before = self.reported
        self.reported = (sent, ok, failed)
        new = np.array(self.latencies[before[1] : ok])
        middle, slow = np.percentile(new, [50, 99]) if len(new) else (np.nan, np.nan)
        return Second(
            number, sent - before[0], ok - before[1], failed - before[2], self.in_flight, round(middle, 4), round(slow, 4)
        )

    def summary(self, seconds: float, offered_seconds: float) -> Summary:
        """Return everything."""
        points = [*PERCENTILES, 100]
        names = [*(f"p{point:g}" for point in PERCENTILES), "max"]
        latency = None
        if self.latencies:
            found = np.percentile(self.latencies, points).round(5).tolist()
            latency = dict(zip(names, found, strict=True))
        return Summary(
            sent=self.sent,
            ok=len(self.latencies),
            failures=dict(self.failures.most_common()),
            retried=dict(self.retried.most_common()),
            seconds=round(seconds, 3),
            offered_rate=round(self.sent / offered_seconds, 2),
            ok_rate=round(len(self.latencies) / seconds, 2),
            latency_seconds=latency,
            late_p99_seconds=round(float(np.percentile(self.late, 99)), 5) if self.late else 0.0,
            max_in_flight=self.max_in_flight,
        )


def random_bodies(ids: Sequence[str], longest: int, k: int, model: str | None, rng: np.random.Generator) -> list[bytes]:
    """Write 200 requests with histories of 1 to `longest` of these items."""
    histories = [rng.choice(ids, rng.integers(1, longest + 1)).tolist() for _ in range(200)]
    requests = [RecommendRequest(history=history, k=k, model=model) for history in histories]
    return [request.model_dump_json(exclude_none=True).encode() for request in requests]


async def send_load(load: Load, rng: np.random.Generator, report: Callable[[Second], Any] = lambda _: None) -> Summary:
    """Send the load, wait for every answer, and count.

    Nothing bounds the requests in flight but memory: a server that cannot keep up shows in failures and latencies.

    Raises:
        ValueError: there is nothing to send.
    """
    times = arrival_times(load.rate, load.seconds, rng)
    if not load.bodies:
        raise ValueError("load: no bodies to send; give at least one")
    picks = rng.integers(0, len(load.bodies), len(times))
    tally, tasks = _Tally(), set[asyncio.Task]()
    connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=None)
    timeout = aiohttp.ClientTimeout(total=load.timeout_seconds)
    headers = {"Content-Type": "application/json", **load.headers}
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers, auto_decompress=False) as session:
        start = time.perf_counter()
        reporter = asyncio.create_task(_report(tally, report))
        for at, pick in zip((start + times).tolist(), picks.tolist(), strict=True):
            if (wait := at - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            elif tally.sent % 64 == 0:
                await asyncio.sleep(0)  # answers come in also while sending lags behind
            task = asyncio.create_task(_send(session, load, load.bodies[pick], at, tally))
            tally.sent += 1
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        while tasks:
            await asyncio.gather(*tasks)
        reporter.cancel()
        report(tally.second(int(time.perf_counter() - start) + 1))
        return tally.summary(time.perf_counter() - start, load.seconds)


async def _send(session: aiohttp.ClientSession, load: Load, body: bytes, at: float, tally: _Tally) -> None:
    """Send one request, again where it may be, and count what became of it."""
    tally.late.append(time.perf_counter() - at)
    tally.in_flight += 1
    tally.max_in_flight = max(tally.max_in_flight, tally.in_flight)
    try:
        for attempt in range(load.retries + 1):
            kind, retry_after = await _try(session, load.url, body)
            if kind is None:
                tally.latencies.append(time.perf_counter() - at)
                return
            if retry_after is None or attempt == load.retries:
                tally.failures[kind] += 1
                return
            tally.retried[kind] += 1
            await asyncio.sleep(retry_after)
    finally:
        tally.in_flight -= 1


async def _try(session: aiohttp.ClientSession, url: str, body: bytes) -> tuple[str | None, float | None]:
    """Return (kind of failure, None for none; seconds after which to try again, None for never)."""
    try:
        async with session.post(url, data=body) as response:
            content = await response.read()
            if response.status == 200:
                return None, None
            again = _seconds(response.headers.get("Retry-After", "0")) if response.status in RETRYABLE else None
            return _kind(response.status, response.content_type, content), again
    except TimeoutError:
        return "timeout", None
    except aiohttp.ClientError as error:
        return f"connection: {type(error).__name__}", 0.0


def _kind(status: int, content_type: str, content: bytes) -> str:
    if content_type != "application/problem+json":
        return str(status)
    try:
        return f"{status} {json.loads(content)['type']}"
    except (ValueError, KeyError, TypeError):
        return f"{status} with a broken problem"


def _seconds(retry_after: str) -> float:
    """Read Retry-After; a date, which is its other form, counts as one second."""
    return float(retry_after) if retry_after.isdigit() else 1.0


async def _report(tally: _Tally, report: Callable[[Second], Any]) -> None:
    """Tell every second what happened in it."""
    start, number = time.perf_counter(), 0
    while True:
        number += 1
        await asyncio.sleep(max(0.0, start + number - time.perf_counter()))
        report(tally.second(number))
