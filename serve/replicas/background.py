"""What a replica does again and again beside answering: each piece by itself, so that one that fails or hangs stops no other."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


def in_own_thread(work: Callable[[], Result]) -> Callable[[], Awaitable[Result]]:
    """Return work to await that runs in a thread of its own: threads that others hold up do not hold it up."""
    thread = ThreadPoolExecutor(1)

    async def run() -> Result:
        return await asyncio.get_running_loop().run_in_executor(thread, work)

    return run


class Background:
    """Pieces of work, each repeated in its own task with a pause of `seconds` before each time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, **works: Callable[[], Awaitable[object]]) -> None:
        """Begin to repeat pieces of work, by name, that do not run yet; needs a running event loop."""
        for name, work in works.items():
            if name not in self._tasks:
                self._tasks[name] = asyncio.create_task(self._repeat(name, work), name=name)

    async def _repeat(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await work()
            except Exception:
                logger.exception("%s: failed, trying again", name)

    def ended(self) -> list[str]:
        """Return the names of work that is not repeated any more; none, unless someone else cancelled it."""
        return [name for name, task in self._tasks.items() if task.done()]

    async def stop(self) -> None:
        """End all of it, and wait until it has ended."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
