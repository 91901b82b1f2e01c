"""What the replicas of a deployment tell each other: that they are there, and what they count.

Ray runs one board for all replicas as a small actor of its own (`serve.app`); this file knows nothing of it.
"""

import time
from collections.abc import Callable
from typing import Protocol

FRESH_SECONDS = 15.0
"""A replica that has reported nothing for longer counts as gone."""


class Board(Protocol):
    """Where replicas report."""

    async def report(self, replica: str, numbers: str) -> int:
        """Leave a replica's numbers, in Prometheus' text format; return how many replicas there are.

        Raises:
            ConnectionError: the board does not answer.
        """
        ...

    async def reports(self) -> dict[str, str]:
        """Return the numbers of all replicas that there are, by replica.

        Raises:
            ConnectionError: the board does not answer.
        """
        ...


class MemoryBoard:
    """A board in the memory of one process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._latest: dict[str, tuple[float, str]] = {}

    async def report(self, replica: str, numbers: str) -> int:
        """See `Board`."""
        self._latest[replica] = self._clock(), numbers
        return len(await self.reports())

    async def reports(self) -> dict[str, str]:
        """See `Board`."""
        oldest = self._clock() - FRESH_SECONDS
        self._latest = {replica: latest for replica, latest in self._latest.items() if latest[0] >= oldest}
        return {replica: numbers for replica, (_, numbers) in sorted(self._latest.items())}
