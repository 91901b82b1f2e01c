"""The endpoint under load: what it carries and what it refuses.

Serves the finished run that the environment variable DIGR_RUN names, on this machine, which also makes the load. Requests are the
run's test histories with reasons, k = 10. The parts, in order: the capacity (32 requests under way at any time); an open loop at
70 % of it, without a single error; one at 3 times the capacity, with nothing but successes and 429s that say when to retry,
and normal answers within 5 s after it; further requests, up to 100,000 in all, over which the replica's memory may grow by at
most 5 %. The memory is first read after a short overload: when a replica first holds as many requests as it accepts at once,
it takes some 0.2 GiB more (probably their stacks in Ray's worker) and keeps it. The ratio is the number of these bars
that do not hold.
"""

import asyncio
import time
from typing import Any, NamedTuple

import httpx
import numpy as np

from benchmarks.harness import Bar, Measurement, main
from benchmarks.serving import Served, bodies_of, closed_loop, finished_run, serving, test_histories, told, versions
from serve.asking.load import Load, Summary, send_load
from serve.settings import AppArguments

BAR = Bar(full=0, quick=0, quick_reason="a count of bars of its own, all of which hold at any size")
CONCURRENCY = 32
SHARE, OVERLOAD = 0.7, 3.0
"""Rates as shares of the capacity."""
MAX_GROWTH, MAX_RECOVERY_SECONDS = 0.05, 5.0
UNKNOWN_USER = b'{"user_id": "nobody", "k": 10}'
"""Answered by popularity, without the decoder: every second request of the memory's measurement, so that it ends in time."""


class Plan(NamedTuple):
    """How long each part takes."""

    capacity_seconds: float = 20
    warm_seconds: float = 20
    sustained_seconds: float = 300
    overload_seconds: float = 60
    requests: int = 100_000


QUICK = Plan(4, 3, 6, 3, 1500)


def measure(quick: bool) -> Measurement:
    """Run all parts; the quick form takes seconds for each and 1,500 requests."""
    plan, store, rng = QUICK if quick else Plan(), finished_run(), np.random.default_rng(0)
    first = dict([next(iter(versions(store).items()))])
    bodies = bodies_of(test_histories(store, 1000, rng), k=10)
    with serving(AppArguments(models=first)) as served:
        url = f"{served.url}/v1/recommend"
        asyncio.run(closed_loop(url, bodies, 4, requests=100))
        capacity = asyncio.run(closed_loop(url, bodies, CONCURRENCY, seconds=plan.capacity_seconds)).ok_rate
        print(f"capacity: {capacity:.1f} requests per second", flush=True)
        figures: dict[str, Any] = {"capacity_per_second": round(capacity, 1)}
        cold = _rss(served)
        _send(url, bodies, OVERLOAD * capacity, plan.warm_seconds, rng)
        before = _rss(served)
        sustained = _send(url, bodies, SHARE * capacity, plan.sustained_seconds, rng)
        figures |= told("sustained", sustained)
        overload, recovery = asyncio.run(_overload(url, bodies, OVERLOAD * capacity, plan.overload_seconds, rng))
        figures |= told("overload", overload) | {"recovery_seconds": recovery}
        figures |= _fill(url, bodies, plan.requests - sustained.sent - overload.sent)
        after = _rss(served)
        figures |= {
            "rss_before_overload_mib": cold,
            "rss_before_mib": before,
            "rss_after_mib": after,
            "rss_growth_rate": round(after / before - 1, 4),
        }
    broken = _broken(figures, sustained, overload)
    return Measurement(figures | {"broken_bars": broken}, ratio=len(broken))


def _broken(figures: dict[str, Any], sustained: Summary, overload: Summary) -> list[str]:
    """Name the bars that do not hold."""
    holds = {
        "sustained load without errors": not sustained.failures,
        "overload with nothing but 429s": all(kind.startswith("429") for kind in overload.failures) and overload.ok > 0,
        "recovery": figures["recovery_seconds"] <= MAX_RECOVERY_SECONDS,
        "flat memory": figures["rss_growth_rate"] <= MAX_GROWTH and set(figures["memory_statuses"]) == {"200"},
    }
    return [name for name, held in holds.items() if not held]


def _rss(served: Served) -> float:
    """Resident memory of the only replica, MiB."""
    (replica,) = served.replicas()
    return round(replica.memory_info().rss / 2**20, 1)


def _send(url: str, bodies: list[bytes], rate: float, seconds: float, rng: np.random.Generator) -> Summary:
    return asyncio.run(send_load(Load(url, bodies, rate, seconds), rng))


async def _overload(
    url: str, bodies: list[bytes], rate: float, seconds: float, rng: np.random.Generator
) -> tuple[Summary, float]:
    """Return what became of the requests, and the seconds from the last of them to the first of ten successes in a row."""

    async def recover() -> float:
        await asyncio.sleep(seconds)
        end, row, first = time.perf_counter(), 0, 0.0
        async with httpx.AsyncClient(timeout=30, headers={"Content-Type": "application/json"}) as client:
            while row < 10:
                reply = await client.post(url, content=bodies[row])
                first = time.perf_counter() if row == 0 else first
                row = row + 1 if reply.status_code == 200 else 0
        return round(first - end, 2)

    summary, recovery = await asyncio.gather(send_load(Load(url, bodies, rate, seconds), rng), recover())
    return summary, recovery


def _fill(url: str, bodies: list[bytes], requests: int) -> dict[str, Any]:
    """Send further requests as fast as they are answered, every second one for an unknown user, without the decoder."""
    mixed = [body for pair in zip(bodies, [UNKNOWN_USER] * len(bodies), strict=True) for body in pair]
    found = asyncio.run(closed_loop(url, mixed, CONCURRENCY, requests=max(requests, 0)))
    print(f"memory: {dict(found.statuses)} in {found.seconds:.0f} s", flush=True)
    statuses = {str(status): number for status, number in found.statuses.items()} or {"200": 0}
    return {"memory_statuses": statuses, "memory_seconds": round(found.seconds, 1)}


if __name__ == "__main__":
    main(measure, BAR)
