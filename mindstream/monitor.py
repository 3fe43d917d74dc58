"""The monitor: measures, again and again, how well the release in use does. One per deployment.

It follows the windows topic outside the group: every click that a worker applied shows there as the
difference of a user's window to the one before, so a start takes windows, not the clicks of years.
"""

from __future__ import annotations

import threading
from typing import Final

import structlog

from consumers.health import Health, HealthServer
from consumers.release_watch import fetch_announced
from encoder.errors import Misconfigured, Unavailable
from encoder.interest_index import InterestIndex
from encoder.milvus_client import close_embedded
from encoder.mind_encoder import MindEncoder
from encoder.release_topic import ReleaseFollower
from encoder.settings import Settings
from encoder.topics import check_topics
from encoder.windows_topic import read_extents
from mindstream.drift import N_COVERED, Drift, encode, stored_drift
from mindstream.live_recall import NewestClicks, new_clicks, popular_items
from mindstream.live_release import LiveRelease
from mindstream.monitor_metrics import MonitorMetrics
from mindstream.window_sample import WindowFollower

_SEED: Final = 0  # the same users after every start, so that figures can be compared
_SAMPLE: Final = 1000  # users of whom coverage and collapse are, as at a switch

log = structlog.get_logger()


def run_monitor(settings: Settings, stop: threading.Event) -> None:
    """Measure until `stop` is set. What does not answer is asked again at the next interval.

    Raises:
        Misconfigured: names the setting, topic or file at fault.
        Unavailable: Kafka or the store did not answer at the start.
    """
    metrics, monitored = MonitorMetrics(), settings.monitor
    longest_s = monitored.interval_s + settings.worker.max_poll_interval_s
    health = Health(stalled_after_s=longest_s)
    server = HealthServer(
        monitored.http_host, monitored.http_port, health, metrics.registry, section="MONITOR"
    )
    log.info("monitor.starting", http_port=server.port)
    try:
        partitions = check_topics(settings.kafka)
        index = InterestIndex(settings.milvus)
        releases = ReleaseFollower(settings.kafka)
        try:
            monitor = Monitor(settings, index, releases, partitions, metrics, health)
            while not stop.is_set():
                try:
                    monitor.turn()
                except Unavailable as exc:
                    log.warning("monitor.unavailable", error=str(exc))
                    health.waiting_for(str(exc))
                stop.wait(monitored.interval_s)
        finally:
            releases.close()
            index.close()
            close_embedded(settings.milvus.uri)
    finally:
        server.close()
        log.info("monitor.stopped")


class Monitor:
    """What is known of users drawn, of their newest clicks, and of the release in use."""

    def __init__(
        self,
        settings: Settings,
        index: InterestIndex,
        releases: ReleaseFollower,
        partitions: int,
        metrics: MonitorMetrics,
        health: Health,
    ) -> None:
        """Know nothing yet."""
        self._settings = settings
        self._index = index
        self._releases = releases
        self._partitions = partitions
        self._metrics = metrics
        self._health = health
        self._live: LiveRelease | None = None
        self._drift: Drift | None = None
        self._topic_id: str | None = None
        self._start_anew()

    def _start_anew(self) -> None:
        users = self._settings.monitor.users
        self._windows = WindowFollower(self._settings, self._partitions, users, seed=_SEED)
        self._newest = NewestClicks(self._settings.monitor.clicks)
        self._all_read = False

    def turn(self) -> None:
        """Read what was written since, and measure the release in use.

        Raises:
            Misconfigured: the release in use is damaged, or a record is no window.
            Unavailable: Kafka, the store or the releases' storage does not answer.
        """
        self._see_to_the_topic()
        self._follow()
        live = self._in_use()
        if live is None:
            self._health.waiting_for("a release in use; publish one with `mindstream train`")
            return
        live.follow(self._index.items)
        found = self._newest.judge(live)
        self._health.progress()
        batch = encode(live.encoder, self._windows.sample.windows(_SAMPLE))
        cosine, covered = batch.mean_cosine(), live.coverage(batch, N_COVERED)
        self._metrics.measured(live.name, found, cosine, covered, self._drift)
        self._health.waiting_for("")
        log.info(
            "monitor.measured",
            release=live.name,
            users=len(self._windows.sample),
            clicks=found.clicks,
            recall=found.recall,
            popularity=found.popularity,
            unknown=found.unknown,
            interest_cosine=cosine,
            coverage=covered,
        )

    def _see_to_the_topic(self) -> None:
        """Begin again where the windows topic is no longer the one that was read."""
        extents = read_extents(self._settings.kafka, range(self._partitions))
        topic_id = extents[0].topic_id
        read = self._windows.read_up_to
        lost = any(extents[partition].end < upto for partition, upto in read.items())
        if self._topic_id not in (None, topic_id) or lost:
            log.warning("monitor.started_anew", topic=self._settings.kafka.windows_topic)
            self._start_anew()
        self._topic_id = topic_id

    def _follow(self) -> None:
        """Take in windows; what is new in them are clicks, but not where all of them are."""
        sample, length = self._windows.sample, self._settings.window_length
        popular = popular_items(sample.windows()) if self._all_read else {}
        for changes in self._windows.read():
            self._health.progress()
            if self._all_read:
                for before, after in changes:
                    clicks = list(new_clicks(before, after, popular, length=length))
                    self._newest.add(clicks)
                    self._metrics.clicks.inc(len(clicks))
        self._all_read = True
        self._metrics.users.set(len(sample))

    def _in_use(self) -> LiveRelease | None:
        """The release that readers read; None where there is none to load yet."""
        in_use = self._index.release_in_use()
        known = self._releases.poll()
        announced = None if in_use is None else known.announcement(in_use.name)
        if announced is None:
            self._live = None
            self._metrics.nothing_in_use()
            return None
        if self._live is None or self._live.name != announced.release:
            release = fetch_announced(announced, self._settings)
            self._live = LiveRelease(MindEncoder(release, self._settings.worker.encoder_threads))
            self._drift = None
            log.info("monitor.release", release=release.name)
        if self._drift is None:  # the publisher stores it a moment after it moves the pointer
            self._drift = _stored_drift(announced.url)
        return self._live


def _stored_drift(url: str) -> Drift | None:
    try:
        return stored_drift(url)
    except Misconfigured as exc:  # all else can be measured without
        log.warning("monitor.drift_not_read", error=str(exc))
        return None
