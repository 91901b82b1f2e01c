"""The queue of requests for decoding: bounded, with a deadline per request; requests of disconnected clients leave it.

Whenever the decoder is free it takes all waiting requests, up to a batch. So a single request never waits for others, and
batches grow under load. (`serve.batch` closes a batch after a fixed time, even if the decoder is free: at moderate load it
waits for nothing and then decodes requests one by one.)
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Int64

from digr.policy.decoding.search import Recommendation
from serve.catalogue import ServedRun
from serve.decoding import BATCH_SIZE, Job
from serve.metrics import Metrics
from serve.problems import deadline_passed, overloaded

Decode = Callable[[list[Job]], list[Recommendation | Exception]]


class Line:
    """At most `max_pending` jobs wait or are decoded; whoever comes then is told to come again."""

    def __init__(self, decode: Decode, max_pending: int, deadline_seconds: float, metrics: Metrics) -> None:
        self._decode, self._max_pending, self._seconds, self._metrics = decode, max_pending, deadline_seconds, metrics
        self._waiting: deque[tuple[Job, asyncio.Future[Recommendation | Exception]]] = deque()
        self._pending = 0
        self._worker: asyncio.Task | None = None
        # a thread of its own: each thread that decodes keeps threads for its matrix products and memory of its own
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="decoder")

    def job(
        self, run: ServedRun, prompt: str, beam_width: int, allowed: Int64[np.ndarray, " W"] | None = None, **ranking: Any
    ) -> Job:
        """Make a job that is wanted until the deadline; `ranking` is what the version's ranker needs of it."""
        return Job(run, prompt, beam_width, allowed, time.monotonic() + self._seconds, **ranking)

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
        futures = [asyncio.get_running_loop().create_future() for _ in jobs]
        self._waiting.extend(zip(jobs, futures, strict=True))
        self._count(len(jobs))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            found = await asyncio.wait_for(asyncio.gather(*futures), self._seconds)
        except TimeoutError:
            raise deadline_passed(self._seconds) from None
        finally:
            for job in jobs:
                job.is_wanted = False
        return [self._result(one) for one in found]

    async def _work(self) -> None:
        """Decode batch after batch until nobody waits; jobs that nobody wants any more count until their turn comes."""
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_SIZE))]
            began = time.perf_counter()
            try:
                jobs = [job for job, _ in batch]
                found = await asyncio.get_running_loop().run_in_executor(self._thread, self._decode, jobs)
            except Exception as error:  # noqa: BLE001 (handed to each request that waits for it; the line goes on)
                found = [error] * len(batch)
            finally:
                self._count(-len(batch))
            self._metrics.batch_size.observe(len(batch))
            self._metrics.decode_seconds.observe(time.perf_counter() - began)
            for (_, future), one in zip(batch, found, strict=True):
                if not future.done():
                    future.set_result(one)

    def _result(self, found: Recommendation | Exception) -> Recommendation:
        if isinstance(found, TimeoutError):
            raise deadline_passed(self._seconds)
        if isinstance(found, Exception):
            raise found
        return found

    def _count(self, change: int) -> None:
        self._pending += change
        self._metrics.pending.set(self._pending)
