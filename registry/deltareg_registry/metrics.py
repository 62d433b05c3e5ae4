"""What a monitoring system reads of one process, in the format of Prometheus.

Each process counts for itself and has its own port. What the database knows, all of them tell alike.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from deltareg.errors import DeltaregError
from deltareg_registry.database import Database
from deltareg_registry.records.counts import RegistryCount, count_registry
from deltareg_registry.records.upkeep import Run, runs

__all__ = ["METRICS_TYPE", "Metrics"]

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PREFIX = "deltareg_registry"
# From a cached answer to the upload of a large blob.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_COUNT_SECONDS = 30.0


class Metrics:
    """The counters of one process. Its methods may be called from any thread."""

    def __init__(self, database: Database) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            f"{_PREFIX}_requests",
            "Requests that were answered, by the template of their route.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            f"{_PREFIX}_request_seconds",
            "How long requests took, until their last byte was sent.",
            ("route", "method"),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self.in_progress = Gauge(
            f"{_PREFIX}_requests_in_progress", "Requests that are being answered.", registry=self._registry
        )
        self._received = Counter(
            f"{_PREFIX}_received_bytes", "Bytes of the bodies of requests.", registry=self._registry
        )
        self._sent = Counter(f"{_PREFIX}_sent_bytes", "Bytes of the bodies of answers.", registry=self._registry)
        self._registry.register(_DatabaseCollector(database))
        ProcessCollector(registry=self._registry)

    def count(self, route: str, method: str, status: int, seconds: float, received: int, sent: int) -> None:
        """Count a request that has been answered. Methods that nobody defined are one."""
        method = method if method in _METHODS else "OTHER"
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route, method).observe(seconds)
        self._received.inc(received)
        self._sent.inc(sent)

    def text(self) -> bytes:
        """All of it, of type METRICS_TYPE. What the database does not tell at the moment is left out."""
        return generate_latest(self._registry)


class _DatabaseCollector(Collector):
    """What the database tells, asked twice a minute at most however often somebody reads, and its connections."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._asked = -_COUNT_SECONDS
        self._told: tuple[RegistryCount, list[Run]] | None = None

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing: who registers this would ask the database."""
        return ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges of this moment."""
        size, used = self._database.connections()
        yield _gauge("database_connections", "Connections to the database that this process keeps.", size)
        yield _gauge("database_connections_used", "Those of them that are in use.", used)
        with self._lock:
            told = self._ask()
        yield _gauge("database_up", "Whether the database answered when it was asked last.", told is not None)
        if told is None:
            return
        count, done = told
        yield _gauge("versions", "Versions of deltas.", count.versions)
        yield _gauge("blobs", "Blobs.", count.blobs)
        yield _gauge("blob_bytes", "Bytes of all blobs.", count.bytes)
        yield _gauge("open_uploads", "Uploads that were begun and not ended.", count.uploads)
        yield _gauge("waiting_deliveries", "Messages that wait for a webhook.", count.deliveries)
        ended = GaugeMetricFamily(
            f"{_PREFIX}_upkeep_timestamp_seconds", "When a regular task ended last, in any process.", labels=("task",)
        )
        failed = GaugeMetricFamily(f"{_PREFIX}_upkeep_failed", "Whether it failed then.", labels=("task",))
        for run in done:
            if run.ended is not None:
                ended.add_metric((run.task,), run.ended.timestamp())
                failed.add_metric((run.task,), run.fault is not None)
        yield ended
        yield failed

    def _ask(self) -> tuple[RegistryCount, list[Run]] | None:
        if time.monotonic() - self._asked < _COUNT_SECONDS and self._told is not None:
            return self._told
        self._asked = time.monotonic()
        try:
            with self._database.reading() as connection:
                self._told = count_registry(connection), runs(connection)
        except DeltaregError:
            self._told = None
        return self._told


def _gauge(name: str, help: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", help, value=value)
