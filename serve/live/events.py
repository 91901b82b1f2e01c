"""Events of users: checked, made durable, and part of the users' next requests."""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from pydantic import ValidationError
from pydantic_core import from_json

from digr.data.event_store import create_store, events_log
from digr.files import filesystem_of, is_remote, list_parts
from digr.serving.event_log import Clock, SegmentFollower, SegmentWriter
from digr.serving.event_parts import build_parts
from digr.serving.user_states import UserStates
from serve.contract.event_schemas import MAX_EVENTS, Event, EventError, EventsReply
from serve.contract.problems import ProblemError, not_json
from serve.live.commits import GroupCommit
from serve.replicas.metrics import Metrics
from serve.settings import AppArguments

logger = logging.getLogger(__name__)

OLDEST_SECONDS = 30 * 24 * 3600
"""A client's time that is further back does not count."""
KNOWN_IDS = 200_000
"""Ids of the newest events, against which new ones are compared. The store's readers compare all."""
MAX_WAITING = 20_000
"""Events that wait to be written."""
S3_PAUSE_SECONDS = 0.25
"""Events gather for so long after each write to S3, where each write is an object."""
MAX_PER_USER = 200
"""Newest events kept of a user."""
PARTS_SECONDS = 60.0
"""How often a replica looks for segments to turn into Parquet."""


class ReadEvents(NamedTuple):
    """The events of a body."""

    events: list[Event]
    errors: list[EventError]


class Events:
    """The events of one replica and, as far as it has followed them, of all others."""

    def __init__(self, arguments: AppArguments, metrics: Metrics, clock: Clock = time.time) -> None:
        self._metrics, self._clock = metrics, clock
        self._log = events_log(arguments.events_dir)
        self._is_remote = is_remote(arguments.events_dir)
        create_store(arguments.events_dir)
        self._writer = SegmentWriter(self._log, clock)
        self._follower = SegmentFollower(self._log, clock, self._writer.name)
        self.commit = GroupCommit(self._writer.append, MAX_WAITING, S3_PAUSE_SECONDS if self._is_remote else 0.0)
        self._max_events = arguments.max_state_events
        self.states = UserStates(arguments.history_events, self._max_events, MAX_PER_USER, KNOWN_IDS)
        self._is_begun = False
        self._next_parts = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="events")
        self._following: Future[None] | None = None

    async def post(self, body: bytes) -> EventsReply:
        """Take the events of a body: one JSON object, a list of them, or one in each line.

        Raises:
            ProblemError: the body is none of them, its only event breaks the contract, too many wait, or the store fails.
        """
        read, rows = await asyncio.to_thread(self._read, body)
        retimed = sum(row["client_time"] not in (None, row["time"]) for row in rows)
        if rows:
            await self._append(rows)
        for type, count in Counter(row["type"] for row in rows).items():
            self._metrics.count_events(type, "accepted", count)
        duplicates = len(read.events) - len(rows)
        self._metrics.count_events("any", "duplicate", duplicates)
        self._metrics.count_events("any", "refused", len(read.errors))
        return EventsReply(accepted=len(rows), duplicates=duplicates, retimed=retimed, errors=read.errors)

    def _read(self, body: bytes) -> tuple[ReadEvents, list[dict[str, Any]]]:
        """Read a body; return its events, and those that are new as rows of the store."""
        read, received = read_events(body), int(self._clock() * 1000)
        fresh = {event.event_id: event for event in reversed(read.events) if not self.states.knows(event.event_id)}
        return read, [_row(event, received) for event in reversed(fresh.values())]

    async def _append(self, rows: list[dict[str, Any]]) -> None:
        done = self.commit.submit(lambda: b"".join(json.dumps(row).encode() + b"\n" for row in rows), len(rows))
        if done is None:
            raise _overloaded()

        def apply(finished: "Future[None]") -> None:
            """Show them to the next requests, also if their sender went away."""
            if finished.exception() is None:
                self.states.add(rows)

        done.add_done_callback(apply)
        try:
            await asyncio.shield(asyncio.wrap_future(done))
        except OSError as error:
            raise _not_stored() from error

    async def catch_up(self) -> None:
        """Read what other replicas wrote before now; on S3 that happens in `tick` only, because a look there takes long."""
        if not self._is_remote:
            await self.follow()

    async def tick(self) -> bool:
        """Read what other replicas wrote, and now and then build parts; return whether it was time for parts."""
        await self.follow()
        if self._clock() < self._next_parts:
            return False
        self._next_parts = self._clock() + PARTS_SECONDS
        await asyncio.wrap_future(self.commit.run(self._writer.close_past))
        await asyncio.to_thread(build_parts, self._log, self._clock())
        return True

    async def follow(self) -> None:
        """Wait for a look into the store that begins after now; all who wait at the same time share one."""
        if self._following is None or self._following.running() or self._following.done():
            self._following = self._thread.submit(self._look)
        try:
            await asyncio.shield(asyncio.wrap_future(self._following))
        except OSError:
            logger.exception("%s: events of other replicas cannot be read", self._log.uri)
            self._metrics.count_events("any", "unread")

    def _look(self) -> None:
        parts = [] if self._is_begun else self._newest_parts()
        self._load(parts)
        for table in self._follower.read():
            self.states.add_batch(table)
        if not self._is_begun:  # what became a part meanwhile
            self._load(sorted(set(self._newest_parts()) - set(parts)))
            self._is_begun = True

    def _newest_parts(self) -> list[str]:
        """Return the newest parts, oldest first, with as many events as are kept."""
        fs, _ = filesystem_of(self._log.uri)
        parts, left = list[str](), self._max_events
        for part in reversed(list_parts(self._log.parts)):
            if left > 0:
                parts.append(part)
                left -= pq.read_metadata(part, filesystem=fs).num_rows
        return parts[::-1]

    def _load(self, parts: list[str]) -> None:
        fs, _ = filesystem_of(self._log.uri)
        for part in parts:
            with pq.ParquetFile(part, filesystem=fs) as file:
                for batch in file.iter_batches():
                    self.states.add_batch(batch)

    def close(self) -> None:
        """Write what waits and close the segment."""
        self.commit.run(self._writer.close).result()


def read_events(body: bytes) -> ReadEvents:
    """Read a body's events: one JSON object, a list, or JSON lines.

    Raises:
        ProblemError: it is none of them, holds too many, or its only event breaks the contract.
    """
    text = body.strip()
    try:
        found = from_json(text)
    except ValueError as error:
        if b"\n" not in text or text.startswith(b"["):
            raise not_json(str(error)) from None
        return _checked(_lines(body))
    if isinstance(found, list):
        return _checked(enumerate(found, 1))
    read = _checked([(1, found)])
    if read.errors:
        raise ProblemError("invalid-request", 422, "The event does not follow the contract", read.errors[0].detail)
    return read


def _lines(body: bytes) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(body.split(b"\n"), 1):
        if line.strip():
            try:
                yield number, from_json(line)
            except ValueError as error:
                yield number, error


def _checked(found: Any) -> ReadEvents:
    events, errors = list[Event](), list[EventError]()
    for place, value in found:
        if len(events) + len(errors) == MAX_EVENTS:
            detail = f"more than {MAX_EVENTS} events; send them in several requests"
            raise ProblemError("too-many-events", 413, "Too many events", detail)
        try:
            if isinstance(value, ValueError):
                raise value
            events.append(Event.model_validate(value))
        except ValidationError as error:
            wrong = [(".".join(map(str, each["loc"])), each["msg"]) for each in error.errors(include_url=False)[:5]]
            detail = "; ".join(f"{where[:60]}: {why}" if where else why for where, why in wrong)
            errors.append(EventError(line=place, detail=detail[:500]))
        except ValueError as error:
            errors.append(EventError(line=place, detail=f"not JSON: {error}"[:500]))
    return ReadEvents(events, errors)


def _row(event: Event, received: int) -> dict[str, Any]:
    """Return an event as a row of the store; a time in the future or long ago does not count."""
    told = event.milliseconds()
    counts = told is not None and received - OLDEST_SECONDS * 1000 <= told <= received
    row = event.model_dump(exclude={"time"})
    return row | {"time": told if counts else received, "client_time": told, "received": received}


def _overloaded() -> ProblemError:
    detail = f"{MAX_WAITING} events wait to be written; send them again later, the ids make that safe"
    return ProblemError("too-many-waiting", 429, "Too many events wait", detail, headers={"Retry-After": "1"})


def _not_stored() -> ProblemError:
    detail = "the events may not be durable, because the store cannot be written; send them again, the ids make that safe"
    return ProblemError("not-stored", 503, "The store fails", detail, headers={"Retry-After": "1"})
