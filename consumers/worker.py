"""One worker process of the update service: puts the loop together and runs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from consumers.click_topic import ClickTopic
from consumers.health import Health, HealthServer
from consumers.item_updates import ItemUpdates
from consumers.item_watch import ItemWatch
from consumers.memory import bound_heaps
from consumers.metrics import WorkerMetrics
from consumers.release_watch import ReleaseWatch, fetch_announced
from consumers.served_releases import ServedReleases
from consumers.takeover import Takeover
from consumers.update_loop import Step, UpdateLoop
from consumers.window_store import WindowStore
from encoder.announced_items import AnnouncedItems
from encoder.errors import Misconfigured, Unavailable
from encoder.interest_index import InterestIndex, ReleaseInUse
from encoder.item_topic import ItemFollower
from encoder.milvus_client import close_embedded
from encoder.release_topic import read_releases
from encoder.settings import Settings
from encoder.topics import check_topics
from encoder.turns import take_turns

_POLL_S: Final = 0.5
_RELEASE_POLL_S: Final = 2.0

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
    take_turns()
    metrics = WorkerMetrics()
    health = Health(stalled_after_s=settings.worker.max_poll_interval_s)
    server = HealthServer(
        settings.worker.http_host, settings.worker.http_port, health, metrics.registry
    )
    log.info("worker.starting", http_port=server.port, group=settings.worker.group_id)
    try:
        partitions = check_topics(settings.kafka)
        with _opened_index(settings) as index:
            metrics.store_behind.set_function(lambda: index.behind_s)
            store = WindowStore()
            with _opened_items(settings, metrics, health, stop) as (items, follower):
                served = ServedReleases(
                    index,
                    store.codes,
                    threads=settings.worker.encoder_threads,
                    items=items,
                    read_items=lambda: follower.poll(stopping=stop.is_set),
                )
                if not _await_releases(settings, served, index, stop, health):
                    return
                updates = ItemUpdates(
                    items,
                    served,
                    store,
                    partitions=partitions,
                    share=settings.worker.backfill_share,
                    settle_s=settings.worker.session_timeout_s,
                )
                item_watch = ItemWatch(follower)
                item_watch.start()
                try:
                    _serve(
                        settings,
                        stop,
                        store,
                        served,
                        updates,
                        item_watch,
                        index,
                        partitions,
                        metrics,
                        health,
                        after_step,
                    )
                finally:
                    item_watch.close()
    finally:
        server.close()
        log.info("worker.stopped")


def _serve(
    settings: Settings,
    stop: threading.Event,
    store: WindowStore,
    served: ServedReleases,
    updates: ItemUpdates,
    items: ItemWatch,
    index: InterestIndex,
    partitions: int,
    metrics: WorkerMetrics,
    health: Health,
    after_step: Callable[[Step], None],
) -> None:
    topic = ClickTopic(settings)
    watch = ReleaseWatch(settings, served.load)
    try:
        takeover = Takeover(
            settings,
            topic,
            store,
            served,
            index,
            partitions=partitions,
            progress=health.waiting_for,
            stopping=stop.is_set,
        )
        loop = UpdateLoop(
            settings,
            topic,
            store,
            served,
            index,
            takeover,
            watch,
            updates,
            metrics=metrics,
            health=health,
            after_step=after_step,
        )
        names = [one.name for one in served]
        log.info("worker.serving", releases=names, partitions=partitions)
        for name in names:
            metrics.release.labels(name).set(1)
        watch.start(set(names))
        try:
            while not stop.is_set():
                items.check()
                loop.turn(_POLL_S)
            loop.finish()
        finally:
            loop.close(settings.worker.stop_budget_s / 2)
    finally:
        watch.close()
        topic.close(timeout_s=settings.worker.stop_budget_s / 2)


def _await_releases(
    settings: Settings,
    served: ServedReleases,
    index: InterestIndex,
    stop: threading.Event,
    health: Health,
) -> bool:
    """Load what is announced, the release in use first; False if told to stop before there is any.

    Raises:
        Misconfigured: the first release cannot be served.
    """
    waiting = False
    while not stop.is_set():
        announced = read_releases(settings.kafka).announced
        if announced:
            in_use = index.release_in_use()
            newest_first = announced[::-1]  # where none is in use, the newest will be
            order = sorted(newest_first, key=lambda one: one.release != _name(in_use))
            for place, one in enumerate(order):
                health.waiting_for(f"release {one.release}")
                try:
                    served.add(served.load(fetch_announced(one, settings), one.items))
                except (Misconfigured, Unavailable) as exc:
                    if place == 0:
                        raise
                    log.error("release.not_loaded", release=one.release, error=str(exc))
            return True
        if not waiting:
            waiting = True
            log.info("release.awaited", hint="publish one with `mindstream train`")
        health.waiting_for("a first release; publish one with `mindstream train`")
        stop.wait(_RELEASE_POLL_S)
    return False


def _name(in_use: ReleaseInUse | None) -> str | None:
    return None if in_use is None else in_use.name


@contextmanager
def _opened_items(
    settings: Settings, metrics: WorkerMetrics, health: Health, stop: threading.Event
) -> Iterator[tuple[AnnouncedItems, ItemFollower]]:
    """Items, read to the end as of now, and what reads on."""
    items = AnnouncedItems()
    metrics.items.set_function(lambda: len(items))
    follower = ItemFollower(
        settings.kafka,
        items,
        rejected=lambda reason: metrics.items_rejected.labels(reason).inc(),
    )
    try:
        follower.poll(
            progress=lambda count: health.waiting_for(f"reading items: {count}"),
            stopping=stop.is_set,
        )
        yield items, follower
    finally:
        follower.close()


@contextmanager
def _opened_index(settings: Settings) -> Iterator[InterestIndex]:
    index = InterestIndex(settings.milvus, max_behind_s=settings.worker.max_behind_s)
    try:
        yield index
    finally:
        index.close()
        close_embedded(settings.milvus.uri)
