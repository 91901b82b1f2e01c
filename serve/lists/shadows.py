"""Shadow traffic: requests that were answered are asked of another version too, when nobody waits, and only logged."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from serve.contract.problems import ProblemError
from serve.replicas.metrics import Metrics

logger = logging.getLogger(__name__)

MAX_WAITING = 16
"""Requests that wait for the shadow; further ones are dropped and counted."""


class Shadows:
    """Requests for the shadow, answered one at a time."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._waiting: deque[Callable[[], Awaitable[None]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    def offer(self, ask: Callable[[], Awaitable[None]]) -> None:
        """Have a request answered by the shadow, unless too many wait."""
        if len(self._waiting) >= MAX_WAITING:
            self._metrics.count_shadow("dropped")
            return
        self._waiting.append(ask)
        if not self.is_busy:
            self._worker = asyncio.create_task(self._work())

    @property
    def is_busy(self) -> bool:
        """Whether any request waits or is being answered."""
        return self._worker is not None and not self._worker.done()

    async def _work(self) -> None:
        while self._waiting:
            outcome = "failed"
            try:
                await self._waiting.popleft()()
                outcome = "logged"
            except ProblemError:  # such as a wish that this version cannot serve
                outcome = "refused"
            except TimeoutError:
                outcome = "dropped"
            except Exception:
                logger.exception("the shadow failed")
            self._metrics.count_shadow(outcome)
