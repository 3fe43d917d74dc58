"""Prometheus metrics of the worker, in base units. Freshness first: it is what we are for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

_FRESHNESS_BOUNDS_S: Final = (
    0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0,
)  # fmt: skip
_STEP_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
_SIZE_BOUNDS: Final = (1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536)


class BulkHistogram(Collector):
    """A histogram that takes an array of observations at once."""

    def __init__(
        self, name: str, text: str, bounds: tuple[float, ...], registry: CollectorRegistry
    ) -> None:
        self._name, self._text = name, text
        self._bounds = np.asarray(bounds)
        self._lock = threading.Lock()
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._sum = 0.0
        registry.register(self)

    def observe(self, values: NDArray[np.float64]) -> None:
        """Count every value, float64 (n,)."""
        # A bucket holds values up to and including its bound.
        buckets = np.searchsorted(self._bounds, values, side="left")
        counts = np.bincount(buckets, minlength=len(self._counts))
        with self._lock:
            self._counts += counts
            self._sum += float(values.sum())

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """For the registry: cumulative buckets."""
        with self._lock:
            cumulative, total = np.cumsum(self._counts).tolist(), self._sum
        bounds = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        yield HistogramMetricFamily(
            self._name, self._text, list(zip(bounds, cumulative, strict=True)), sum_value=total
        )


class WorkerMetrics:
    """All metrics of one worker, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # processor time, memory, open files
        self.freshness = BulkHistogram(
            "mindstream_freshness_seconds",
            "From a click's production to its user's interests being acknowledged by the store.",
            _FRESHNESS_BOUNDS_S,
            registry,
        )
        self.store_behind = Gauge(
            "mindstream_store_behind_seconds",
            "For how long, so far, acknowledged interests could not be read from the store.",
            registry=registry,
        )
        self.lag = Gauge(
            "mindstream_lag_clicks",
            "Clicks written to the topic but not yet polled.",
            ["partition"],
            registry=registry,
        )
        self.clicks = Counter(
            "mindstream_clicks", "Click records whose batch was committed.", registry=registry
        )
        self.erasures = Counter(
            "mindstream_erasures", "Tombstones whose batch was committed.", registry=registry
        )
        self.users = Counter(
            "mindstream_users", "Changed windows that were committed.", registry=registry
        )
        self.rows_written = Counter(
            "mindstream_rows_written", "Interest rows written to the store.", registry=registry
        )
        self.rows_deleted = Counter(
            "mindstream_rows_deleted",
            "Keys deleted from the store because their slot is not in use.",
            registry=registry,
        )
        self.rejected = Counter(
            "mindstream_rejected",
            "Records set aside on the dead-letter topic.",
            ["reason"],
            registry=registry,
        )
        self.items = Gauge(
            "mindstream_items_announced",
            "Items of which the items topic says something.",
            registry=registry,
        )
        self.items_rejected = Counter(
            "mindstream_item_records_rejected",
            "Records of the items topic that say nothing of an item.",
            ["reason"],
            registry=registry,
        )
        self.items_known = Gauge(
            "mindstream_items_known",
            "Items that a release was not trained on and knows by their fields.",
            ["release"],
            registry=registry,
        )
        self.items_waiting = Gauge(
            "mindstream_items_waiting",
            "1 while changes of items are not yet in the interests of all users.",
            registry=registry,
        )
        self.batch_clicks = Histogram(
            "mindstream_batch_clicks",
            "Records in a batch.",
            registry=registry,
            buckets=_SIZE_BOUNDS,
        )
        self.step = Histogram(
            "mindstream_step_seconds",
            "Time of each step of a batch.",
            ["step"],
            registry=registry,
            buckets=_STEP_BOUNDS_S,
        )
        self.windows = Gauge("mindstream_windows", "Windows held in memory.", registry=registry)
        self.partitions = Gauge(
            "mindstream_partitions", "Partitions assigned and restored.", registry=registry
        )
        self.restored = Counter(
            "mindstream_restored_windows", "Windows read back on assignment.", registry=registry
        )
        self.expired = Counter(
            "mindstream_clicks_expired",
            "Clicks deleted from their topic before the group had read them.",
            registry=registry,
        )
        self.backfilled = Counter(
            "mindstream_backfilled_users",
            "Users encoded for a release before it was served.",
            registry=registry,
        )
        self.unfilled = Gauge(
            "mindstream_unfilled_partitions",
            "Partitions owned, over all releases served, whose users are not all encoded for it.",
            registry=registry,
        )
        self.ready = Gauge(
            "mindstream_ready", "1 while the worker is serving its partitions.", registry=registry
        )
        self.release = Gauge(
            "mindstream_release_info",
            "1 for every release whose interests are kept up to date.",
            ["release"],
            registry=registry,
        )
