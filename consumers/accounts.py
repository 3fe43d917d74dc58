"""What a worker tells of its batches: metrics, and a line of log now and then."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import structlog

from consumers.batch import Decision
from consumers.encoding import Encoded
from consumers.metrics import WorkerMetrics
from encoder.records import Record

_SUMMARY_EVERY_S: Final = 10.0

log = structlog.get_logger()


class Accounts:
    """Accounts for what was written and committed."""

    _freshness_max_s: float

    def __init__(self, metrics: WorkerMetrics, now: float) -> None:
        """Begin at a time in seconds since 1970."""
        self._metrics = metrics
        self._clear(now)

    def written(self, encoded: Iterable[Encoded]) -> None:
        """Rows that were written, and keys that were deleted."""
        for one in encoded:
            self._metrics.rows_written.inc(len(one.rows))
            self._metrics.rows_deleted.inc(len(one.stale_keys))

    def committed(self, records: Sequence[Record], decision: Decision, written_at: float) -> float:
        """A batch that was committed.

        Args:
            records: of the batch, one at least.
            decision: what they did.
            written_at: when their rows were acknowledged, in seconds since 1970.

        Returns:
            How old its newest record was by then, in seconds.
        """
        metrics = self._metrics
        produced = np.fromiter((r.timestamp for r in records), np.float64, len(records)) / 1000.0
        freshness = np.maximum(written_at - produced, 0.0)
        metrics.freshness.observe(freshness)
        metrics.clicks.inc(decision.clicks)
        metrics.erasures.inc(decision.erasures)
        metrics.users.inc(decision.users)
        for rejected in decision.rejected:
            metrics.rejected.labels(rejected.reason).inc()
        metrics.batch_clicks.observe(len(records))
        self._batches += 1
        self._clicks += len(records)
        self._users += decision.users
        self._rejected += len(decision.rejected)
        self._freshness_max_s = max(self._freshness_max_s, float(freshness.max()))
        return float(freshness.min())

    def log_if_due(self, now: float, lag: int) -> None:
        """Sum up what happened since the last line.

        Args:
            now: seconds since 1970.
            lag: clicks that wait to be polled.
        """
        if now - self._since < _SUMMARY_EVERY_S:
            return
        if self._batches:
            log.info(
                "batches.applied",
                batches=self._batches,
                clicks=self._clicks,
                users=self._users,
                rejected=self._rejected,
                lag_clicks=lag,
                freshness_max_ms=round(self._freshness_max_s * 1000),
                seconds=round(now - self._since, 1),
            )
        self._clear(now)

    def _clear(self, now: float) -> None:
        self._since = now
        self._batches = self._clicks = self._users = self._rejected = 0
        self._freshness_max_s = 0.0
