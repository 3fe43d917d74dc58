"""Forgetting a user, and proving that nothing is left."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from encoder.click import Click, RejectedClick, parse_user
from encoder.click_history import RejectedRecord, read_click_topic
from encoder.dead_letter_topic import DeadLetter, read_dead_letters
from encoder.errors import Misconfigured
from encoder.interest_index import InterestIndex
from encoder.kafka_client import producer, translated
from encoder.settings import Settings
from encoder.topics import check_topics
from encoder.window import NEVER, Window
from encoder.windows_topic import read_windows
from mindstream.cached_clicks import CachedClicks, find_cached
from mindstream.group import wait_until_committed

_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A record that has a user forgotten.

    Attributes:
        where: it is, as topic[partition] offset.
        up_to_ms: clicks up to then are forgotten.
    """

    where: str
    up_to_ms: int


def write_tombstone(
    settings: Settings, user_id: str, *, partition: int | None, stalled_after_s: float
) -> Tombstone:
    """Write a tombstone for a user, and wait until a worker has applied it.

    Args:
        settings: where the topic is, and which group's workers apply it.
        user_id: whom to forget.
        partition: where the user's clicks are; the default partitioner's choice if None.
        stalled_after_s: the longest wait without progress of the group.

    Raises:
        Misconfigured: that is no user id, there is no such partition, or the user's window is on
            another one.
        Unavailable: Kafka does not answer, or no worker applies it; it stays on the topic.
    """
    key = _key(user_id)
    partitions = check_topics(settings.kafka)
    if partition is not None and partition >= partitions:
        raise Misconfigured(
            f"--partition {partition}: {settings.kafka.clicks_topic} has {partitions} partitions,"
            " numbered from 0"
        )
    with translated("writing the tombstone", settings.kafka):
        client = producer(settings.kafka)
        try:
            sent = client.send(settings.kafka.clicks_topic, key=key, partition=partition)
            written = sent.get(timeout=_TIMEOUT_S)
        finally:
            client.close(timeout=_TIMEOUT_S)
    wait_until_committed(
        settings, written.partition, written.offset, stalled_after_s=stalled_after_s
    )
    where = f"{written.topic}[{written.partition}] offset {written.offset}"
    missed = Traces(user_id)
    _find_windows(settings, missed)
    for other, window in missed.windows.items():
        if window.clicks and other != written.partition:
            raise Misconfigured(
                f"the user's window is on partition {other}, and the tombstone is {where}:"
                f" producers do not use Kafka's own partitioner. Erase with --partition {other}"
            )
    return Tombstone(where, written.timestamp)


@dataclass(slots=True)
class Traces:
    """What is known of a user, place by place.

    Attributes:
        erased_at_ms: until when the user asked to be forgotten, NEVER if that is not known.
        windows: the user's windows as last written, by partition of the windows topic.
        rows: collection → `updated_at` in ms of the user's rows.
        old_clicks: records on the clicks topic from before the erasure. No worker applies them;
            they go with the topic's retention.
        new_clicks: those from after it.
        dead_letters: records on the dead-letter topic that name the user; they go with its
            retention, and none from before the erasure takes effect when it is replayed.
        cached: what the trainer's cache on this machine has.
    """

    user_id: str
    erased_at_ms: int = NEVER
    windows: dict[int, Window] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)
    old_clicks: int = 0
    new_clicks: int = 0
    dead_letters: int = 0
    cached: CachedClicks | None = None

    @property
    def cached_before(self) -> int:
        """Clicks in the cache from before the erasure; all of them if none is known."""
        times_ms = self.cached.times_ms if self.cached is not None else ()
        if self.erased_at_ms == NEVER:
            return len(times_ms)
        return sum(at <= self.erased_at_ms for at in times_ms)

    @property
    def absent(self) -> bool:
        """Whether nothing from before the erasure is in effect anywhere, or in the cache.

        Clicks from after it start afresh: they may have a window, and then rows.
        """
        if self.cached_before or (self.cached is not None and self.cached.unread):
            return False
        fresh = self.erased_at_ms != NEVER and any(one.clicks for one in self.windows.values())
        if not fresh:
            return not any(self.rows.values()) and not any(w.clicks for w in self.windows.values())
        newest = [at for of_collection in self.rows.values() for at in of_collection]
        oldest = [at for window in self.windows.values() for at, _ in window.clicks]
        return all(at > self.erased_at_ms for at in newest + oldest)

    def report(self) -> str:
        """Lines to read, one a place."""
        lines = [f"{place}: {what}" for place, what in self._places()]
        if self.erased_at_ms == NEVER:
            lines.append("no erasure is known: none was asked for, or its mark has expired")
        else:
            lines.append(f"erased up to {_instant(self.erased_at_ms)}")
        lines.append("nothing is left in effect" if self.absent else "the user is not forgotten")
        return "\n".join(lines)

    def as_json(self) -> dict[str, object]:
        """For one JSON line."""
        return {
            "absent": self.absent,
            "erased_at_ms": self.erased_at_ms,
            "window_clicks": sum(len(window.clicks) for window in self.windows.values()),
            "rows": {name: len(rows) for name, rows in self.rows.items()},
            "old_clicks": self.old_clicks,
            "new_clicks": self.new_clicks,
            "dead_letters": self.dead_letters,
            "cached_clicks": self.cached_before,
            "cache_unread": len(self.cached.unread) if self.cached is not None else 0,
        }

    def _places(self) -> list[tuple[str, str]]:
        places = [
            (f"window on partition {partition}", f"{len(window.clicks)} clicks")
            for partition, window in self.windows.items()
        ]
        places += [(name, f"{len(rows)} rows") for name, rows in self.rows.items()]
        places.append(
            (
                "clicks topic",
                f"{self.old_clicks} clicks from before, applied by nobody, until its retention"
                f" deletes them; {self.new_clicks} from after",
            )
        )
        places.append(
            ("dead-letter topic", f"{self.dead_letters} records, until its retention deletes them")
        )
        if self.cached is not None:
            places.append((f"trainer's cache {self.cached.folder}", self._in_cache(self.cached)))
        return places

    def _in_cache(self, cached: CachedClicks) -> str:
        if not cached.there:
            return "not on this machine; look on the trainer's"
        told = f"{self.cached_before} clicks from before"
        if self.cached_before:
            told += ", until `mindstream erase` here, or until the next training run has begun"
        if cached.unread:
            told += f"; {', '.join(cached.unread)} cannot be read: the next training run mends that"
        return told


def find_traces(settings: Settings, index: InterestIndex, user_id: str) -> Traces:
    """Read every place that may hold something of a user.

    Raises:
        Misconfigured: that is no user id.
        Unavailable: Kafka or Milvus does not answer, or a training writes to its cache.
    """
    key = _key(user_id)
    traces = Traces(user_id)
    _find_windows(settings, traces)
    _find_clicks(settings, traces)
    _find_dead_letters(settings, key, traces)
    traces.rows = index.rows_by_collection(user_id)
    traces.cached = find_cached(settings, user_id)
    return traces


def _find_windows(settings: Settings, traces: Traces) -> None:
    partitions = range(check_topics(settings.kafka))
    stall_s = settings.worker.open_transaction_s
    for partition, user_id, window in read_windows(settings.kafka, partitions, timeout_s=stall_s):
        if user_id == traces.user_id:
            traces.windows.pop(partition, None)
            if window is not None:
                traces.windows[partition] = window
    for window in traces.windows.values():
        traces.erased_at_ms = max(traces.erased_at_ms, window.erased_at_ms)


def _find_clicks(settings: Settings, traces: Traces) -> None:
    timestamps: list[int] = []
    for events in read_click_topic(settings):
        for event in events:
            if isinstance(event, RejectedRecord) or event.user_id != traces.user_id:
                continue
            if isinstance(event, Click):
                timestamps.append(event.timestamp_ms)
            else:
                traces.erased_at_ms = max(traces.erased_at_ms, event.up_to_ms)
    traces.new_clicks = sum(at > traces.erased_at_ms for at in timestamps)
    traces.old_clicks = len(timestamps) - traces.new_clicks


def _find_dead_letters(settings: Settings, key: bytes, traces: Traces) -> None:
    for _, letter in read_dead_letters(settings.kafka):
        if isinstance(letter, DeadLetter):
            traces.dead_letters += letter.key == key or _names(letter.value, traces.user_id)


def _names(value: bytes | None, user_id: str) -> bool:
    try:
        message = json.loads(value or b"")
    except (ValueError, RecursionError):
        return False
    return isinstance(message, dict) and message.get("user_id") == user_id


def _key(user_id: str) -> bytes:
    key = user_id.encode("utf-8", "surrogateescape")
    try:
        parse_user(key)
    except RejectedClick as exc:
        raise Misconfigured(f"{user_id!r} is no user id: {exc.detail}") from exc
    return key


def _instant(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
