"""Prometheus metrics of all replicas, available at each of them.

Each replica has its own counters, labelled by its name, and reports them regularly (`serve.replicas.board`); `GET /metrics` adds
what the other replicas reported.
"""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.parser import text_string_to_metric_families

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """What one replica counts."""

    def __init__(self, replica: str) -> None:
        own = CollectorRegistry()
        self._own, self._replica = own, replica
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

        self._events = Counter("digr_events", "Events by type and outcome", [*labels, "type", "outcome"], registry=own)
        self._impressions = Counter("digr_impressions", "Lists by whether they were logged", [*labels, "outcome"], registry=own)
        self._shadows = Counter("digr_shadow_lists", "Requests for the shadow by outcome", [*labels, "outcome"], registry=own)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(self._replica, route, str(status)).inc()
        self._seconds.labels(self._replica, route).observe(seconds)

    def count_list(self, model: str, source: str, is_proven: bool = False) -> None:
        """Count a list."""
        self._lists.labels(self._replica, model, source).inc()
        self._proven.labels(self._replica, model).inc(int(is_proven))

    def count_events(self, type: str, outcome: str, count: int = 1) -> None:
        """Count events."""
        self._events.labels(self._replica, type, outcome).inc(count)

    def count_impression(self, outcome: str) -> None:
        """Count a list that was to be logged."""
        self._impressions.labels(self._replica, outcome).inc()

    def count_shadow(self, outcome: str) -> None:
        """Count a request for the shadow."""
        self._shadows.labels(self._replica, outcome).inc()

    def own(self) -> str:
        """Return the numbers of this replica in Prometheus' text format."""
        return generate_latest(self._own).decode()

    def text(self, reports: Mapping[str, str]) -> bytes:
        """Return the numbers of all replicas in Prometheus' text format: those of this one, and what others reported."""
        others = [numbers for replica, numbers in reports.items() if replica != self._replica]
        return generate_latest(_Families(_merge([self.own(), *others])))


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
