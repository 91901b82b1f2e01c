"""The queue of requests for decoding: bounded, with a deadline per request; requests of disconnected clients leave it.

Whenever the decoder is free it takes all waiting requests, up to a batch: one of each caller in turn. So a single request never
waits for others, and batches grow under load. (`serve.batch` closes a batch after a fixed time, even if the decoder is free: at
moderate load it waits for nothing and then decodes requests one by one.)
"""

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from digr.policy.decoding.search import Recommendation
from serve.contract.problems import deadline_passed, decoder_down, overloaded
from serve.items.catalogue import ServedRun
from serve.lists.decoding import BATCH_SIZE, Job
from serve.middleware.callers import current_caller
from serve.replicas.metrics import Metrics

Decode = Callable[[list[Job]], list[Recommendation | Exception]]


STUCK_SECONDS = 60.0
"""A batch takes a fraction of a second; after this time, or three deadlines, its decoder is taken for stuck."""


class Waiting(NamedTuple):
    """A job in the line."""

    job: Job
    caller: str
    future: asyncio.Future[Recommendation | Exception]


class Line:
    """At most `max_pending` jobs wait or are decoded; whoever comes then is told to come again.

    A caller has the line to itself while nobody else waits. Others who come get in, each up to an equal share of `max_pending`.
    """

    def __init__(
        self,
        decode: Decode,
        max_pending: int,
        deadline_seconds: float,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._decode, self._max_pending, self._seconds, self._metrics = decode, max_pending, deadline_seconds, metrics
        self._clock = clock
        self._waiting: dict[str, deque[Waiting]] = {}
        """Jobs by caller; the first caller is the next one."""
        self._pending = Counter[str]()
        self._busy_since: float | None = None
        self.is_idle = threading.Event()
        """Set while nothing is decoded; other work stands aside otherwise."""
        self.is_idle.set()
        self._failure = ""
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

        A caller who has nothing in the line gets in with a request of any size.

        Raises:
            ProblemError: too many wait already, or the deadline passed.
        """
        if not jobs:
            return []
        caller = current_caller().name
        own = self._pending[caller]
        if own and own + len(jobs) > self._max_pending // len(self._pending):
            raise overloaded(own)
        futures = [asyncio.get_running_loop().create_future() for _ in jobs]
        self._waiting.setdefault(caller, deque()).extend(map(Waiting, jobs, [caller] * len(jobs), futures))
        self._count(caller, len(jobs))
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
            batch, began = self._next_batch(), self._clock()
            self._busy_since = began
            self.is_idle.clear()
            try:
                found = await self._decode_apart([waiting.job for waiting in batch])
            except Exception as error:  # noqa: BLE001 (handed to each request that waits for it; the line goes on)
                found = [error] * len(batch)
            finally:
                self._busy_since = None
                self.is_idle.set()
                for waiting in batch:
                    self._count(waiting.caller, -1)
            self._metrics.batch_size.observe(len(batch))
            self._metrics.decode_seconds.observe(self._clock() - began)
            for waiting, one in zip(batch, found, strict=True):
                if not waiting.future.done():
                    waiting.future.set_result(one)

    def _next_batch(self) -> list[Waiting]:
        """Take a job of each caller in turn, until the batch is full."""
        batch = list[Waiting]()
        while self._waiting and len(batch) < BATCH_SIZE:
            caller = next(iter(self._waiting))
            jobs = self._waiting.pop(caller)
            batch.append(jobs.popleft())
            if jobs:
                self._waiting[caller] = jobs
        return batch

    async def _decode_apart(self, jobs: list[Job]) -> list[Recommendation | Exception]:
        """Decode in the decoder's thread.

        Raises:
            ProblemError: it takes no more work.
            ValueError: it gave another number of results.
        """
        try:
            decoding = asyncio.get_running_loop().run_in_executor(self._thread, self._decode, jobs)
        except RuntimeError as error:
            self._failure = f"the decoder takes no more work: {error}"
            raise decoder_down(self._failure) from None
        found = await decoding
        if len(found) != len(jobs):
            raise ValueError(f"the decoder gave {len(found)} results for {len(jobs)} jobs")
        return found

    @property
    def is_busy(self) -> bool:
        """Whether a batch is being decoded."""
        return self._busy_since is not None

    def trouble(self) -> str | None:
        """Say why no more lists can be made here; None if they can."""
        if self._failure:
            return self._failure
        if self._waiting and (self._worker is None or self._worker.done()):
            return "lists wait, but nothing decodes them"
        limit = max(STUCK_SECONDS, 3 * self._seconds)
        if self._busy_since is not None and (busy := self._clock() - self._busy_since) > limit:
            return f"the decoder has been stuck for {busy:.0f} s"
        return None

    def close(self) -> None:
        """Take no more work; what is being decoded ends."""
        self._thread.shutdown(wait=False)

    async def decode_when_idle(self, job: Job) -> Recommendation:
        """Decode a job once nobody waits; whoever comes meanwhile waits for this one list at most, and is not refused for it.

        Raises:
            TimeoutError: its deadline passed first.
        """
        while self._worker is not None and not self._worker.done():
            await asyncio.wait([self._worker])
        [found] = await self._decode_apart([job])
        if isinstance(found, Exception):
            raise found
        return found

    def _result(self, found: Recommendation | Exception) -> Recommendation:
        if isinstance(found, TimeoutError):
            raise deadline_passed(self._seconds)
        if isinstance(found, Exception):
            raise found
        return found

    def _count(self, caller: str, change: int) -> None:
        """Add to the jobs of a caller that wait or are decoded."""
        self._pending[caller] += change
        self._pending = +self._pending  # only callers that have some
        self._metrics.pending.set(self._pending.total())
