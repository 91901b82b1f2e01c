"""Prometheus metrics of all replicas, available at each of them.

Each replica has its own counters, labelled by its name, and writes them regularly into the state folder; `GET /metrics` adds
those of the other replicas. Without a state folder it returns only the metrics of the replica that answers.
"""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.parser import text_string_to_metric_families

from digr.serving.state import StateStore

FRESH_SECONDS, KEPT_SECONDS = 15.0, 3600.0
"""Files of replicas that wrote nothing for longer are not shown, then removed."""
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """What one replica counts."""

    def __init__(self, replica: str, state: StateStore | None) -> None:
        own = CollectorRegistry()
        self._own, self._replica, self._state = own, replica, state
        labels = ["replica"]
        self._requests = Counter("digr_requests", "Requests answered", [*labels, "route", "status"], registry=own)
        self._seconds = Histogram(
            "digr_request_seconds", "Time from request to answer", [*labels, "route"], registry=own, buckets=_SECONDS
        )
        self.pending = Gauge("digr_pending_requests", "Lists that wait or are decoded", labels, registry=own).labels(replica)
        self.batch_size = Histogram(
            "digr_batch_size", "Lists decoded together", labels, registry=own, buckets=(1, 2, 4, 8, 16, 32)
        ).labels(replica)
        self.decode_seconds = Histogram(
            "digr_decode_seconds", "Time of decoding one batch", labels, registry=own, buckets=_SECONDS
        ).labels(replica)
        self._lists = Counter("digr_lists", "Lists by who made them", [*labels, "model", "source"], registry=own)
        self._proven = Counter(
            "digr_proven_lists", "Lists proven to be the most probable items", [*labels, "model"], registry=own
        )

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(self._replica, route, str(status)).inc()
        self._seconds.labels(self._replica, route).observe(seconds)

    def count_list(self, model: str, source: str, is_proven: bool = False) -> None:
        """Count a list."""
        self._lists.labels(self._replica, model, source).inc()
        self._proven.labels(self._replica, model).inc(int(is_proven))

    def write(self) -> None:
        """Leave the numbers for the other replicas to read."""
        if self._state is not None:
            self._state.write(f"metrics/{self._replica}.prom", generate_latest(self._own))

    def text(self) -> bytes:
        """Return the numbers of all replicas in Prometheus' text format."""
        return generate_latest(_Families(_merge([generate_latest(self._own).decode(), *self._others()])))

    def _others(self) -> Iterator[str]:
        if self._state is None:
            return
        for file in self._state.list_files("metrics"):
            if file.age_seconds > KEPT_SECONDS:
                self._state.remove(file.name)
            elif file.age_seconds <= FRESH_SECONDS and file.name != f"metrics/{self._replica}.prom":
                content = self._state.read(file.name)
                if content is not None:  # another replica may have removed it
                    yield content.decode()


class _Families(CollectorRegistry):
    """Metric families that exist already, in the form in which they are written."""

    def __init__(self, families: Iterable[Metric]) -> None:
        super().__init__()
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _merge(texts: Iterable[str]) -> list[Metric]:
    """Put the samples of equal families together, as the format wants it."""
    families: dict[str, Metric] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            if family.name in families:
                families[family.name].samples.extend(family.samples)
            else:
                families[family.name] = family
    return list(families.values())
