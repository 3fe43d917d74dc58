"""Replays clicks onto the topic at a given speed, and measures how soon interests follow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Final

from kafka import KafkaProducer

from encoder.click import Click
from encoder.errors import Unavailable
from encoder.kafka_client import producer, translated
from encoder.settings import Settings
from lookup import Lookup

_TICK_S: Final = 0.002
_LINGER_MS: Final = 1
_PROBE_PAUSE_S: Final = 0.001
_PROBE_EVERY_S: Final = 0.01
_PROBE_READS: Final = 8  # at a time
_PROBE_REST_S: Final = 0.02  # or its reads would be a load of their own
_PROBE_TIMEOUT_S: Final = 120.0


@dataclass(slots=True)
class FreshnessProbe:
    """Times single clicks: from their production to their user's rows being readable by key.

    One click is followed at a time, with a rest after it. Only a click on a known item is chosen,
    since a user without any has no rows, and only one later than all earlier ones of its user,
    because then `updated_at` tells that the rows were made with it.

    A read that takes long is not waited for before the next one begins: rows that appear just after
    a read began would count as later by all of it, which on a Milvus server is as much again as
    there is to measure.

    Attributes:
        lookup: what reads the rows.
        known_items: the items of the release in use.
        seconds: what was measured so far.
    """

    lookup: Lookup
    known_items: Container[str]
    seconds: list[float] = field(default_factory=list)
    _offer: tuple[Click, float] | None = None
    _wake: threading.Event = field(default_factory=threading.Event)
    _stop: threading.Event = field(default_factory=threading.Event)
    _newest: dict[str, int] = field(default_factory=dict)
    _thread: threading.Thread | None = None
    _failed: BaseException | None = None

    def start(self, history: Sequence[Click]) -> None:
        """Begin to follow clicks; `history` is what was produced before."""
        for click in history:
            self._remember(click)
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)
        self._thread.start()

    def produced(self, click: Click, at: float) -> None:
        """Tell of a click handed to Kafka at `at` (time.perf_counter)."""
        newest = self._remember(click)
        if newest and click.item_id in self.known_items and not self._wake.is_set():
            self._offer = (click, at)
            self._wake.set()

    def finish(self) -> None:
        """Wait for the click being followed, then stop.

        Raises:
            Unavailable: a click never became readable.
        """
        self._stop.set()
        self._wake.set()
        if self._thread:
            self._thread.join()
        if self._failed:
            raise self._failed

    def _remember(self, click: Click) -> bool:
        newer = click.timestamp_ms > self._newest.get(click.user_id, 0)
        if newer:
            self._newest[click.user_id] = click.timestamp_ms
        return newer

    def _run(self) -> None:
        try:
            with ThreadPoolExecutor(_PROBE_READS, "probe-read") as readers:
                self._follow_offers(readers)
        except BaseException as exc:
            self._failed = exc

    def _follow_offers(self, readers: Executor) -> None:
        while True:
            self._wake.wait()
            if self._offer is not None:
                click, at = self._offer
                self.seconds.append(self._followed(click, at, readers) - at)
                self._offer = None
                self._stop.wait(_PROBE_REST_S)
            elif self._stop.is_set():
                return
            self._wake.clear()
            if self._stop.is_set():
                return

    def _followed(self, click: Click, at: float, readers: Executor) -> float:
        """When the first read ended that has the click. None is under way afterwards."""
        reads: set[Future[float | None]] = set()
        while True:
            if len(reads) < _PROBE_READS:
                reads.add(readers.submit(self._read, click))
            done, reads = wait(reads, _PROBE_EVERY_S, FIRST_COMPLETED)
            if seen := [when for read in done if (when := read.result()) is not None]:
                wait(reads)
                return min(seen)
            if time.perf_counter() - at > _PROBE_TIMEOUT_S:
                raise Unavailable(
                    f"a click was not readable {_PROBE_TIMEOUT_S:g} s after its production"
                )
            if done:
                time.sleep(_PROBE_PAUSE_S)

    def _read(self, click: Click) -> float | None:
        """When a read ended that has the click; None if it does not have it."""
        found = self.lookup.interests(click.user_id).interests
        now = time.perf_counter()
        seen = found and min(row.updated_at for row in found) >= click.timestamp_ms
        return now if seen else None


def replay(
    settings: Settings,
    clicks: Sequence[Click],
    *,
    clicks_per_s: float,
    produced: Callable[[Click, float], None] = lambda click, at: None,
    progress: Callable[[int], None] = lambda done: None,
    stop: threading.Event | None = None,
) -> int:
    """Produce clicks in the order given, and wait until Kafka has them all.

    Args:
        settings: where the topic is.
        clicks: to produce.
        clicks_per_s: the speed; 0 is as fast as can be.
        produced: told of each click and when it was handed over (time.perf_counter).
        progress: told now and then how many are produced.
        stop: ends the replay early when set.

    Returns:
        How many clicks were produced.
    """
    stop = stop or threading.Event()
    topic = settings.kafka.clicks_topic
    failed: list[BaseException] = []
    done = 0
    with translated(f"producing to {topic}", settings.kafka):
        # At a rate, each leaves at once: what it would wait for others is no part of freshness.
        linger_ms = 0 if clicks_per_s else _LINGER_MS
        client: KafkaProducer = producer(settings.kafka, linger_ms=linger_ms, batch_size=1 << 17)
        started = time.perf_counter()
        while done < len(clicks) and not stop.is_set() and not failed:
            due = len(clicks)
            if clicks_per_s:
                due = min(due, int((time.perf_counter() - started) * clicks_per_s) + 1)
            for click in clicks[done : min(due, done + 1000)]:
                key, value = click.to_record()
                at = time.perf_counter()
                client.send(topic, key=key, value=value).add_errback(failed.append)
                produced(click, at)
                done += 1
            progress(done)
            if done >= due:
                time.sleep(_TICK_S)
        client.flush()
        client.close()
        if failed:
            raise failed[0]
    return done
