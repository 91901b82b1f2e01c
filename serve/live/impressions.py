"""The log of lists: which items a user was shown, at which position, by which version, and why. It never delays a reply."""

import json
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from digr.data.event_store import create_store, impressions_log
from digr.files import digest_of, is_remote
from digr.interests.canonical import find_groups
from digr.serving.event_log import Clock, SegmentWriter
from digr.serving.event_parts import build_parts
from serve.contract.schemas import ExperimentArm, RecommendReply
from serve.contract.similar_schemas import SimilarReply
from serve.items.catalogue import ServedRun
from serve.live.commits import GroupCommit
from serve.replicas.metrics import Metrics

MAX_WAITING = 2000
"""Lists that wait to be written; further ones are dropped and counted."""
PAUSE_SECONDS, S3_PAUSE_SECONDS = 0.2, 5.0
"""Time in which lists gather to be written at once."""


class Shown(NamedTuple):
    """One list, and what is needed to say why each item is in it."""

    run: ServedRun
    reply: RecommendReply | SimilarReply
    list_source: str
    """Who made the list: `source` of a recommendation; `similar` for similar items."""
    user_id: str | None
    places: Sequence[int]
    """Items of the history, oldest first; of similar items the item that was asked for."""
    listed: Sequence[int]
    interests: str | None
    """Interests of a known user, as the prompt showed them."""
    has_reasons: bool
    """Whether the reply has reasons already."""
    arm: ExperimentArm | None
    is_shadow: bool


class Impressions:
    """The log of the lists of one replica."""

    def __init__(self, store: str, metrics: Metrics, clock: Clock = time.time, pause_seconds: float | None = None) -> None:
        self._metrics, self._clock = metrics, clock
        create_store(store)
        self._log = impressions_log(store)
        self._writer = SegmentWriter(self._log, clock)
        usual = S3_PAUSE_SECONDS if is_remote(store) else PAUSE_SECONDS
        self.commit = GroupCommit(self._writer.append, MAX_WAITING, usual if pause_seconds is None else pause_seconds)

    def add(self, shown: Shown) -> None:
        """Have a list logged, unless too many wait."""
        received = int(self._clock() * 1000)
        done = self.commit.submit(lambda: _line(shown, received))
        if done is None:
            self._metrics.count_impression("dropped")
        else:
            done.add_done_callback(self._count)

    def _count(self, done: "Future[None]") -> None:
        self._metrics.count_impression("logged" if done.exception() is None else "failed")

    def close(self) -> None:
        """Write what waits and close the segment."""
        self.commit.run(self._writer.close).result()

    def build_parts(self) -> None:
        """Turn what was logged in past hours into Parquet."""
        self.commit.run(self._writer.close_past).result()
        build_parts(self._log, self._clock())


def _line(shown: Shown, received: int) -> bytes:
    run, reply = shown.run, shown.reply
    reasons = [item.reasons for item in reply.items]
    if not shown.has_reasons:
        reasons = run.explain(shown.places, np.asarray(shown.listed, np.int64), shown.interests)
    names = iter(_canonical(run, [own[0] for own in reasons if own]))
    items = [
        {
            "item_id": item.item_id,
            "position": position,
            "sources": item.sources or [shown.list_source],
            "interest": next(names) if own else None,
        }
        for position, (item, own) in enumerate(zip(reply.items, reasons, strict=True), 1)
    ]
    history = run.facts.table.take(shown.places, ["item_id"])["item_id"].to_pylist()
    row = {
        "recommendation_id": reply.recommendation_id,
        "received": received,
        "user_id": shown.user_id,
        "history": digest_of(history),
        "model": reply.model,
        "experiment": shown.arm.experiment if shown.arm else None,
        "arm": shown.arm.arm if shown.arm else None,
        "shadow": shown.is_shadow,
        "list_source": shown.list_source,
        "items": items,
    }
    return json.dumps(row).encode() + b"\n"


def _canonical(run: ServedRun, reasons: list[str]) -> list[str]:
    """Return the names of the reasons' canonical interests; a reason without one is its own name."""
    canonical = run.interests.canonical
    if canonical is None or not reasons:
        return reasons
    group = find_groups(canonical, pa.array(reasons)).tolist()
    return [canonical.names[at].as_py() if at >= 0 else own for at, own in zip(group, reasons, strict=True)]
