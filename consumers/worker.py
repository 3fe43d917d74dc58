"""One worker process of the update service: puts the loop together and runs it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog

from consumers.click_topic import ClickTopic
from consumers.encoding import WindowEncoder
from consumers.health import Health, HealthServer
from consumers.memory import bound_heaps, collect_rarely
from consumers.metrics import WorkerMetrics
from consumers.takeover import Takeover
from consumers.update_loop import Step, UpdateLoop
from consumers.window_store import WindowStore
from encoder.errors import Misconfigured
from encoder.interest_index import InterestIndex
from encoder.milvus_client import close_embedded
from encoder.mind_encoder import MindEncoder
from encoder.release import Release, fetch_release
from encoder.release_topic import read_releases
from encoder.settings import Settings
from encoder.topics import check_topics

_POLL_S: Final = 0.5
_RELEASE_POLL_S: Final = 2.0
_SWITCH_INTERVAL_S: Final = 0.0005  # a write waits no longer for a thread that computes; else 5 ms

log = structlog.get_logger()


def run_worker(
    settings: Settings,
    stop: threading.Event,
    *,
    after_step: Callable[[Step], None] = lambda step: None,
) -> None:
    """Serve until `stop` is set, then finish the batch in hand and leave the group.

    Raises:
        Misconfigured: names the setting, topic, file or collection at fault.
        Unavailable: a step's budget is spent; nothing uncommitted is lost.
    """
    bound_heaps()
    collect_rarely()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    metrics = WorkerMetrics()
    health = Health(stalled_after_s=settings.worker.max_poll_interval_s)
    server = HealthServer(
        settings.worker.http_host, settings.worker.http_port, health, metrics.registry
    )
    log.info("worker.starting", http_port=server.port, group=settings.worker.group_id)
    try:
        partitions = check_topics(settings.kafka)
        release = _await_release(settings, stop, health)
        if release is None:
            return
        metrics.release.labels(release.name).set(1)
        with _opened_index(settings, release) as index:
            metrics.store_behind.set_function(lambda: index.behind_s)
            _serve(settings, stop, release, index, partitions, metrics, health, after_step)
    finally:
        server.close()
        log.info("worker.stopped")


def _serve(
    settings: Settings,
    stop: threading.Event,
    release: Release,
    index: InterestIndex,
    partitions: int,
    metrics: WorkerMetrics,
    health: Health,
    after_step: Callable[[Step], None],
) -> None:
    store = WindowStore()
    mind = MindEncoder(release, threads=settings.worker.encoder_threads)
    encoder = WindowEncoder(mind, store.codes)
    topic = ClickTopic(settings)
    try:
        takeover = Takeover(
            settings,
            topic,
            store,
            encoder,
            index,
            release=release,
            partitions=partitions,
            progress=health.waiting_for,
            stopping=stop.is_set,
        )
        loop = UpdateLoop(
            settings,
            topic,
            store,
            encoder,
            index,
            takeover,
            release=release.name,
            metrics=metrics,
            health=health,
            after_step=after_step,
        )
        log.info("worker.serving", release=release.name, partitions=partitions)
        try:
            while not stop.is_set():
                loop.turn(_POLL_S)
            loop.finish()
        finally:
            loop.close(settings.worker.stop_budget_s / 2)
    finally:
        topic.close(timeout_s=settings.worker.stop_budget_s / 2)


def _await_release(settings: Settings, stop: threading.Event, health: Health) -> Release | None:
    waiting = False
    while not stop.is_set():
        newest = read_releases(settings.kafka).newest
        if newest is not None:
            health.waiting_for(f"release {newest.release}")
            release = fetch_release(newest.url, Path(settings.releases.cache))
            if release.name != newest.release:
                raise Misconfigured(
                    f"{newest.url} holds release {release.name}, but was announced as"
                    f" {newest.release}; publish the release again"
                )
            if release.manifest.window_length > settings.window_length:
                raise Misconfigured(
                    f"MINDSTREAM_WINDOW_LENGTH is {settings.window_length}, but release"
                    f" {release.name} reads windows of {release.manifest.window_length} clicks"
                )
            return release
        if not waiting:
            waiting = True
            log.info("release.awaited", hint="publish one with `mindstream train`")
        health.waiting_for("a first release; publish one with `mindstream train`")
        stop.wait(_RELEASE_POLL_S)
    return None


@contextmanager
def _opened_index(settings: Settings, release: Release) -> Iterator[InterestIndex]:
    index = InterestIndex(settings.milvus, max_behind_s=settings.worker.max_behind_s)
    try:
        if not index.has_release(release.name):
            raise Misconfigured(
                f"Milvus at {settings.milvus.uri} has no collections of release {release.name};"
                " is MINDSTREAM_MILVUS__URI the store that the release was published to?"
            )
        index.create_release(release.name, release.manifest.width)
        yield index
    finally:
        index.close()
        close_embedded(settings.milvus.uri)
