"""Start the endpoint on a local Ray Serve for the serving benchmarks: a finished run, its test histories as requests."""

import asyncio
import os
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import aiohttp
import numpy as np
import psutil
import pyarrow as pa

from digr import artifacts
from digr.artifacts import Store
from serve.asking.load import Summary
from serve.contract.schemas import RecommendRequest
from serve.settings import AppArguments, LiveSettings, VersionSettings

EDGE_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""Where Ray Serve's proxy finds `serve.edge`."""
REPLICA = "ServeReplica:digr:Recommender"
"""Part of the title of a replica's process."""


class Served(NamedTuple):
    """A running endpoint."""

    url: str
    arguments: AppArguments

    def replicas(self) -> list[psutil.Process]:
        """Return the replicas' processes, below this one, by age."""
        below = psutil.Process().children(recursive=True)
        return sorted((one for one in below if REPLICA in "".join(_title(one))), key=lambda one: one.create_time())

    def deploy(self, live: LiveSettings, num_replicas: int = 1) -> None:
        """Change the versions or the number of replicas of what runs, and wait for it."""
        from ray import serve

        from serve.app import Recommender

        changed = Recommender.options(user_config=live.model_dump(), num_replicas=num_replicas)  # type: ignore[attr-defined]
        # `serve deploy` keeps replicas whose code and arguments stay; `serve.run` makes up a new version each time, unless
        changed._version = "1"
        serve.run(changed.bind(self.arguments), name="digr", route_prefix="/")


def _title(process: psutil.Process) -> Sequence[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it ended meanwhile
        return ()


@contextmanager
def serving(arguments: AppArguments) -> Iterator[Served]:
    """Start Ray and the endpoint on a free port with one replica; end both. Its state goes into a scratch folder."""
    import ray
    from ray import serve

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as state:
        os.environ.setdefault(EDGE_VARIABLE, "serve.edge:middlewares")
        arguments = arguments.model_copy(update={"state_dir": state}).resolved()
        ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, configure_logging=False)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            served = Served(f"http://127.0.0.1:{port}", arguments)
            served.deploy(arguments.live())
            yield served
        finally:
            serve.shutdown()
            ray.shutdown()


def finished_run() -> Store:
    """Return the run that the environment variable DIGR_RUN names.

    Raises:
        ValueError: it names none.
    """
    run = os.environ.get("DIGR_RUN")
    if not run:
        raise ValueError("set DIGR_RUN to the folder of a finished run")
    return Store(run)


def versions(store: Store) -> dict[str, VersionSettings]:
    """Return the run's policies as versions, without a ranker, the one to serve first."""
    names = [name for name in ("policy_grpo", "policy_sft") if artifacts.read_manifest(store, name)]
    settings = {"run_dir": store.root, "ranker": "off"}
    return {name.removeprefix("policy_"): VersionSettings.model_validate(settings | {"policy": name}) for name in names}


def test_histories(store: Store, number: int, rng: np.random.Generator) -> pa.Table:
    """Draw rows of test histories, one per user as far as there are so many."""
    rows = artifacts.read_table(store, "histories", split=["test"])
    first = np.unique(rows["user_id"].to_numpy(zero_copy_only=False), return_index=True)[1]
    return rows.take(pa.array(rng.permutation(first)[:number]))


def bodies_of(histories: pa.Table, **fields: Any) -> list[bytes]:
    """Write a request for each history."""
    requests = (RecommendRequest(history=items, **fields) for items in histories["history"].to_pylist())
    return [request.model_dump_json(exclude_none=True).encode() for request in requests]


class Closed(NamedTuple):
    """What a closed loop found."""

    statuses: Counter[int]
    seconds: float

    @property
    def ok_rate(self) -> float:
        """Successes per second."""
        return self.statuses[200] / self.seconds


async def closed_loop(
    url: str, bodies: Sequence[bytes], concurrency: int, *, seconds: float = float("inf"), requests: float = float("inf")
) -> Closed:
    """Keep `concurrency` requests under way, for a time or a number of requests: as fast as the server answers.

    Raises:
        aiohttp.ClientError: a connection broke.
    """
    statuses, start = Counter[int](), time.perf_counter()
    order = iter(range(int(min(requests, 10**9))))

    async def one(session: aiohttp.ClientSession) -> None:
        for number in order:
            if time.perf_counter() - start > seconds:
                return
            async with session.post(url, data=bodies[number % len(bodies)]) as response:
                await response.read()
                statuses[response.status] += 1

    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:
        await asyncio.gather(*(one(session) for _ in range(concurrency)))
    return Closed(statuses, time.perf_counter() - start)


def told(part: str, summary: Summary) -> dict[str, Any]:
    """Print what became of a load, and return it as figures."""
    latency = summary.latency_seconds or {}
    figures = {
        "rate": summary.offered_rate,
        "sent": summary.sent,
        "ok": summary.ok,
        "failures": summary.failures,
        "p50_ms": round(1000 * latency.get("p50", float("nan")), 1),
        "p99_ms": round(1000 * latency.get("p99", float("nan")), 1),
        "generator_late_p99_ms": round(1000 * summary.late_p99_seconds, 1),
    }
    print(f"{part}: {figures}", flush=True)
    return {f"{part}_{name}": value for name, value in figures.items()}
