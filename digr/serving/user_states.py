"""The newest events of the users seen last, in memory of a fixed size."""

import bisect
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, NamedTuple

import pyarrow as pa


class Happened(NamedTuple):
    """One event of a user; events are ordered by these fields."""

    time: int
    """Milliseconds since 1970."""
    received: int
    event_id: str
    item_id: str


class UserStates:
    """Bounded: users not seen for longest are forgotten first, and so are the ids that came first. Threads may share it.

    Args:
        types: which types of events are kept; the ids of all are.
        max_events: events of all users.
        max_per_user: newest events of a user.
        max_ids: ids of events.
    """

    def __init__(self, types: Iterable[str], max_events: int, max_per_user: int, max_ids: int) -> None:
        self._types = frozenset(types)
        self._max_events, self._max_per_user, self._max_ids = max_events, max_per_user, max_ids
        self._users: OrderedDict[str, list[Happened]] = OrderedDict()
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._num_events = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return how many events are kept."""
        return self._num_events

    def knows(self, event_id: str) -> bool:
        """Whether an event of this id is among the last that were added."""
        return event_id in self._ids

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add events, each a dict of the columns of `EVENTS` with times in milliseconds; known ids change nothing."""
        with self._lock:
            for row in rows:
                if row["event_id"] in self._ids:
                    continue
                self._ids[row["event_id"]] = None
                if len(self._ids) > self._max_ids:
                    self._ids.popitem(last=False)
                if row["type"] in self._types:
                    self._add(row["user_id"], Happened(*(row[name] for name in Happened._fields)))

    def add_batch(self, table: pa.Table | pa.RecordBatch) -> None:
        """Add events of a log."""
        columns = [table[name] for name in ("time", "received")]
        plain = [column.cast(pa.int64()) for column in columns]
        names = ("event_id", "user_id", "item_id", "type")
        self.add(pa.table([*plain, *(table[name] for name in names)], names=["time", "received", *names]).to_pylist())

    def _add(self, user_id: str, event: Happened) -> None:
        events = self._users.setdefault(user_id, [])
        self._users.move_to_end(user_id)
        bisect.insort(events, event)
        self._num_events += 1
        if len(events) > self._max_per_user:
            del events[0]
            self._num_events -= 1
        while self._num_events > self._max_events:
            self._num_events -= len(self._users.popitem(last=False)[1])

    def items_of(self, user_id: str, after: int | None) -> list[str]:
        """Return the items of a user's kept events, oldest first.

        Args:
            user_id: the user; an unknown one has none.
            after: milliseconds since 1970; only later events count. None for all.
        """
        with self._lock:
            events = self._users.get(user_id)
            if events is None:
                return []
            self._users.move_to_end(user_id)
            return [event.item_id for event in events if after is None or event.time > after]
