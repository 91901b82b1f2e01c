"""Changes under load: a version is loaded, promoted and rolled back, and a replica is killed.

Serves the finished run that the environment variable DIGR_RUN names, under an open loop of its test histories at a quarter of the
capacity (32 requests under way at any time). First the run's other policy is loaded beside the served one, made the default and
rolled back; no request may fail. Then one of two replicas is killed; a client that retries once must not notice. The ratio
is the number of requests that failed.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np

from benchmarks.harness import Bar, Measurement, main
from benchmarks.serving import Served, bodies_of, closed_loop, finished_run, serving, test_histories, told, versions
from serve.asking.load import Load, Summary, send_load
from serve.settings import AppArguments, LiveSettings

BAR = Bar(full=0, quick=0, quick_reason="a count of failures, none of which is allowed at any size")
SHARE = 0.25
"""Rate, as a share of the capacity."""


def measure(quick: bool) -> Measurement:
    """Change versions for 60 seconds, then kill a replica within 60; the quick form takes 12 for each."""
    seconds, store, rng = 12.0 if quick else 60.0, finished_run(), np.random.default_rng(0)
    offered = versions(store)
    first = dict([next(iter(offered.items()))])
    bodies = bodies_of(test_histories(store, 1000, rng), k=10)
    with serving(AppArguments(models=first)) as served:
        url = f"{served.url}/v1/recommend"
        asyncio.run(closed_loop(url, bodies, 4, requests=100))
        capacity = asyncio.run(closed_loop(url, bodies, 32, seconds=seconds / 4)).ok_rate
        before = served.replicas()
        swap, seen = _swap(served, LiveSettings(models=offered), bodies, rate=SHARE * capacity, seconds=seconds, rng=rng)
        assert served.replicas() == before, "the swap restarted the replica"
        figures = {"capacity_per_second": round(capacity, 1)} | told("swap", swap) | {"swap_default_versions": seen}
        kill = _kill(served, LiveSettings(models=first), bodies, rate=SHARE * capacity, seconds=seconds, rng=rng)
        figures |= told("kill", kill) | {"kill_retried": kill.retried}
    return Measurement(figures, ratio=sum(swap.failures.values()) + sum(kill.failures.values()))


def _send(url: str, bodies: list[bytes], rate: float, seconds: float, rng: np.random.Generator, *, retries: int = 0) -> Summary:
    return asyncio.run(send_load(Load(url, bodies, rate, seconds, retries=retries), rng))


@contextmanager
def _beside(*steps: tuple[float, Callable[[], Any]]) -> Iterator[None]:
    """Do each step at its time, in seconds from now, while the block runs."""

    def run() -> None:
        start = time.perf_counter()
        for at, step in steps:
            time.sleep(max(0.0, start + at - time.perf_counter()))
            step()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(run)
        yield
        done.result()


def _swap(
    served: Served, live: LiveSettings, bodies: list[bytes], *, rate: float, seconds: float, rng: np.random.Generator
) -> tuple[Summary, list[str]]:
    """Load another version, make it the default and go back under load; also returns the defaults that were seen."""
    seen = [_default(served)]
    other = next((name for name in live.models if name != seen[0]), seen[0])

    def change(body: dict[str, str]) -> None:
        httpx.post(f"{served.url}/v1/models", json=body, timeout=60).raise_for_status()
        seen.append(_default(served))

    load = (0.1 * seconds, lambda: served.deploy(live))
    promote = (0.6 * seconds, lambda: change({"action": "promote", "model": other}))
    roll_back = (0.8 * seconds, lambda: change({"action": "roll_back"}))
    with _beside(load, promote, roll_back):
        summary = _send(f"{served.url}/v1/recommend", bodies, rate, seconds, rng)
    print(f"swap: defaults {seen}", flush=True)
    return summary, seen


def _default(served: Served) -> str:
    return httpx.get(f"{served.url}/healthz", timeout=60).raise_for_status().json()["model"]


def _kill(
    served: Served, live: LiveSettings, bodies: list[bytes], *, rate: float, seconds: float, rng: np.random.Generator
) -> Summary:
    """Kill one of two replicas under load, for a client that tries once more where it may."""
    served.deploy(live, num_replicas=2)
    victim = served.replicas()[0]
    with _beside((0.3 * seconds, victim.kill)):
        return _send(f"{served.url}/v1/recommend", bodies, rate, seconds, rng, retries=1)


if __name__ == "__main__":
    main(measure, BAR)
