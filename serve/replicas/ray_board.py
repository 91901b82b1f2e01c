"""The board of a deployment as a small Ray actor; Ray is only here and in `serve.app`."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from serve.replicas.board import MemoryBoard

Answer = TypeVar("Answer")

PATIENCE_SECONDS = 5.0
"""How long the board may take to answer."""


class RayBoard:
    """A board that all replicas find by its name. It ends with the replica that made it; another one then makes the next."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._actor: Any = None

    async def report(self, replica: str, numbers: str) -> int:
        """See `serve.replicas.board.Board`."""
        return await self._ask(lambda board: board.report.remote(replica, numbers))

    async def reports(self) -> dict[str, str]:
        """See `serve.replicas.board.Board`."""
        return await self._ask(lambda board: board.reports.remote())

    async def _ask(self, question: Callable[[Any], Awaitable[Answer]]) -> Answer:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                if self._actor is None:
                    self._actor = await asyncio.to_thread(self._find)
                return await question(self._actor)
        except (RayError, TimeoutError, ValueError) as error:
            self._actor = None
            raise ConnectionError(f"the board {self._name} does not answer: {error!r}") from None

    def _find(self) -> Any:
        options = {"name": self._name, "namespace": "serve", "get_if_exists": True, "num_cpus": 0}
        return ray.remote(MemoryBoard).options(**options).remote()
