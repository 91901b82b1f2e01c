"""Work beside requests, such as the load of a version: it stands aside while lists are decoded.

Decoding is many short operations, each of which gives Python's lock up and has to get it back. Other code holds the lock for 5 ms
at a time, so a list that was decoded during a load made no progress until the load had ended.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

MAX_WAIT_SECONDS = 0.1
"""Longest wait for a batch: longer ones are slowed less by this work, and it may hold something that the batch needs."""
SHARE = 0.25
"""This work goes on for so much of the time that it waited before it waits again. So it ends under full load too."""


@contextmanager
def standing_aside(is_idle: threading.Event, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Make this thread's calls of functions wait while `is_idle` is not set; a call that has begun is not interrupted.

    It is Python's hook for profilers that waits, so whatever the block calls needs to know nothing of it.
    """
    busy_until = 0.0

    def wait_for_idle(frame: FrameType, event: str, called: Any) -> None:
        nonlocal busy_until
        if is_idle.is_set() or (begun := clock()) < busy_until:
            return
        is_idle.wait(MAX_WAIT_SECONDS)
        ended = clock()
        busy_until = ended + SHARE * (ended - begun)

    before = sys.getprofile()
    sys.setprofile(wait_for_idle)
    try:
        yield
    finally:
        sys.setprofile(before)
