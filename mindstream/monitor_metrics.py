"""Prometheus metrics of what goes wrong quietly, in base units."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from mindstream.drift import Drift
from mindstream.live_recall import LiveRecall

_FIGURES: Final[dict[str, tuple[str, list[str]]]] = {
    "mindstream_measured_release_info": (
        "1 for the release in use, which is measured.",
        ["release"],
    ),
    "mindstream_recall_ratio": (
        "Share of the newest clicks among the n items nearest to interests just before.",
        ["n"],
    ),
    "mindstream_popularity_recall_ratio": (
        "Share of the same clicks among the n items most popular in the week before.",
        ["n"],
    ),
    "mindstream_recall_clicks": ("Clicks that recall is of.", []),
    "mindstream_unknown_clicks_ratio": (
        "Share of the newest clicks that are on items the release does not know.",
        [],
    ),
    "mindstream_interest_cosine": (
        "Mean cosine between the interests of one user; 1 where all are the same.",
        [],
    ),
    "mindstream_coverage_ratio": (
        "Share of the items that are retrieved that are among the nearest of anybody drawn.",
        [],
    ),
    "mindstream_switch_changed_ratio": (
        "Share of users whose strongest interest changed when the release came into use.",
        ["release", "start"],
    ),
    "mindstream_switch_item_cosine": (
        "Mean cosine of the same items in the release and in the one before it.",
        ["release", "start"],
    ),
}

Figures = dict[tuple[str, ...], float]
"""By name and values of the labels."""


class _Figures(Collector):
    """Gauges that change all at once, and are absent where there is nothing to measure.

    One that is not a number would spoil every average that reaches back to it.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.now: Figures = {}
        registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """For the registry."""
        now = self.now
        for name, (text, labels) in _FIGURES.items():
            family = GaugeMetricFamily(name, text, labels=labels)
            for (own, *values), figure in now.items():
                if own == name and not math.isnan(figure):
                    family.add_metric(values, figure)
            yield family


class MonitorMetrics:
    """All metrics of the monitor, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.clicks = Counter(
            "mindstream_observed_clicks", "Clicks of users drawn.", registry=registry
        )
        self.users = Gauge("mindstream_observed_users", "Users drawn.", registry=registry)
        self.measured_at = Gauge(
            "mindstream_measured_timestamp_seconds",
            "When all of this was last measured, in s since 1970; 0 before.",
            registry=registry,
        )
        self._figures = _Figures(registry)

    def nothing_in_use(self) -> None:
        """There is no release to measure."""
        self._figures.now = {}

    def measured(
        self, release: str, found: LiveRecall, cosine: float, coverage: float, drift: Drift | None
    ) -> None:
        """Show what was measured of the release in use, and what changed when it came into use."""
        now: Figures = {
            ("mindstream_measured_release_info", release): 1.0,
            ("mindstream_recall_clicks",): float(found.clicks),
            ("mindstream_unknown_clicks_ratio",): found.unknown,
            ("mindstream_interest_cosine",): cosine,
            ("mindstream_coverage_ratio",): coverage,
        }
        for n, share in found.recall.items():
            now["mindstream_recall_ratio", str(n)] = share
            now["mindstream_popularity_recall_ratio", str(n)] = found.popularity[n]
        if drift is not None:
            labels = drift.release, "warm" if drift.warm else "cold"
            now["mindstream_switch_changed_ratio", *labels] = drift.changed
            if drift.item_cosine is not None:
                now["mindstream_switch_item_cosine", *labels] = drift.item_cosine
        self._figures.now = now
        self.measured_at.set(time.time())
