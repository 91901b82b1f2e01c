"""Group commit: what many requests want to append at the same time is written, and made durable, at once."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

logger = logging.getLogger(__name__)

Make = Callable[[], bytes]
"""Returns whole lines."""


class _Waiting(NamedTuple):
    make: Make
    num_rows: int
    done: "Future[None]"


class GroupCommit:
    """One thread that writes whatever waits, again and again while something does.

    Args:
        write: makes lines durable, or raises OSError.
        max_waiting: rows that may wait.
        pause_seconds: time after each write in which rows gather, where nobody waits for the answer.
    """

    def __init__(self, write: Callable[[bytes], None], max_waiting: int, pause_seconds: float = 0.0) -> None:
        self._write, self._max_waiting, self._pause = write, max_waiting, pause_seconds
        self._waiting: list[_Waiting] = []
        self._num_waiting = 0
        self._is_active = False
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="log")

    def submit(self, make: Make, count: int = 1) -> "Future[None] | None":
        """Have `count` rows appended; None if too many wait. The future tells when they are durable, or why not.

        A caller that finds nobody waiting gets in whatever its count.
        """
        with self._lock:
            if self._num_waiting and self._num_waiting + count > self._max_waiting:
                return None
            entry = _Waiting(make, count, Future())
            entry.done.set_running_or_notify_cancel()  # from now on nobody can cancel it
            self._waiting.append(entry)
            self._num_waiting += count
            if not self._is_active:
                self._is_active = True
                self._thread.submit(self._drain)
            return entry.done

    @property
    def num_waiting(self) -> int:
        """Rows that wait to be written."""
        return self._num_waiting

    def run(self, what: Callable[[], None]) -> "Future[None]":
        """Run something between two writes."""
        return self._thread.submit(what)

    def flush(self) -> None:
        """Wait until all that was submitted is written or has failed."""
        self.run(lambda: None).result()

    def _drain(self) -> None:
        while batch := self._take():
            ready: list[tuple[bytes, _Waiting]] = []
            for entry in batch:
                try:
                    ready.append((entry.make(), entry))
                except Exception as error:
                    logger.exception("%d rows cannot be made", entry.num_rows)  # those of others are written
                    entry.done.set_exception(error)
            try:
                if ready:
                    self._write(b"".join(lines for lines, _ in ready))
            except Exception as error:
                logger.exception("%d rows were not written", sum(entry.num_rows for _, entry in ready))
                for _, entry in ready:
                    entry.done.set_exception(error)
            else:
                for _, entry in ready:
                    entry.done.set_result(None)
            if self._pause:
                time.sleep(self._pause)

    def _take(self) -> list[_Waiting]:
        with self._lock:
            batch, self._waiting = self._waiting, []
            self._num_waiting = 0
            self._is_active = bool(batch)
            return batch
