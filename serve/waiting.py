"""The line of requests that wait to be decoded: bounded, with a deadline for each, and left by those that go away."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
from jaxtyping import Bool

from digr.policy.beam import Recommendation
from serve.catalogue import ServedRun
from serve.decoding import Job
from serve.metrics import Metrics
from serve.problems import deadline_passed, overloaded

Decode = Callable[[Job], Awaitable[Recommendation | Exception]]


class Line:
    """At most `max_pending` jobs wait or are decoded; whoever comes then is told to come again."""

    def __init__(self, decode: Decode, max_pending: int, deadline_seconds: float, metrics: Metrics) -> None:
        self._decode, self._max_pending, self._seconds, self._metrics = decode, max_pending, deadline_seconds, metrics
        self._pending = 0

    def job(self, run: ServedRun, prompt: str, beam_width: int, allowed: Bool[np.ndarray, " N"] | None = None) -> Job:
        """Make a job that is wanted until the deadline."""
        return Job(run, prompt, beam_width, allowed, time.monotonic() + self._seconds)

    async def decode(self, jobs: Sequence[Job]) -> list[Recommendation]:
        """Decode the jobs of one request, together with others that wait; all of them or none.

        A request that finds the line empty gets in whatever its size.

        Raises:
            ProblemError: too many wait already, or the deadline passed.
        """
        if not jobs:
            return []
        if self._pending and self._pending + len(jobs) > self._max_pending:
            raise overloaded(self._pending)
        self._count(len(jobs))
        tasks = [asyncio.ensure_future(self._decode(job)) for job in jobs]
        for task in tasks:  # counted until its turn has come, also where the request goes away before
            task.add_done_callback(lambda _: self._count(-1))
        try:
            found = await asyncio.wait_for(asyncio.shield(asyncio.gather(*tasks)), self._seconds)
        except TimeoutError:
            raise deadline_passed(self._seconds) from None
        finally:
            for job in jobs:
                job.is_wanted = False
        return [self._result(one) for one in found]

    def _result(self, found: Recommendation | Exception) -> Recommendation:
        if isinstance(found, TimeoutError):
            raise deadline_passed(self._seconds)
        if isinstance(found, Exception):
            raise found
        return found

    def _count(self, change: int) -> None:
        self._pending += change
        self._metrics.pending.set(self._pending)
