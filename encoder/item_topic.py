"""The items topic: which items there are beyond those that releases were trained on.

Compacted, and keeps the records that withdraw items. An item's records must all be on one
partition, as Kafka's default partitioner has it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from itertools import islice
from typing import Any, Final

import structlog
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from encoder.announced_items import AnnouncedItems
from encoder.errors import Misconfigured, Unavailable
from encoder.item_record import ItemRecord, RejectedItem, parse_fields, parse_item_id
from encoder.kafka_client import open_reader, producer, translated
from encoder.settings import KafkaSettings

_TIMEOUT_S: Final = 30.0
_POLL_MS: Final = 200
_POLL_RECORDS: Final = 10_000

log = structlog.get_logger()


class ItemFollower:
    """Reads the topic as it grows. For any thread, one at a time."""

    def __init__(
        self,
        settings: KafkaSettings,
        items: AnnouncedItems,
        *,
        rejected: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """Begin with the first record.

        Args:
            settings: where the topic is.
            items: what is read goes there.
            rejected: is told the reason of every record that says nothing of an item.
        """
        self._settings = settings
        self._items = items
        self._rejected = rejected
        self._consumer: KafkaConsumer | None = None
        self._lock = threading.Lock()
        self._closed = False

    def poll(
        self,
        *,
        progress: Callable[[int], None] = lambda records: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Read to what is the end now; nothing once it is closed.

        Args:
            progress: is told how many records are read so far.
            stopping: whether to give up.

        Raises:
            Misconfigured: the topic is not there.
            Unavailable: Kafka does not answer.
        """
        with self._lock, translated("reading items", self._settings):
            if self._closed:  # who polls in another thread may not know yet
                return
            consumer = self._opened()
            partitions = sorted(consumer.assignment())
            ends = consumer.end_offsets(partitions)
            count, progressed = 0, time.monotonic()
            while any(consumer.position(p) < ends[p] for p in partitions) and not stopping():
                polled = consumer.poll(timeout_ms=_POLL_MS, max_records=_POLL_RECORDS)
                for partition, records in polled.items():
                    found = [record for one in records if (record := self._parsed(one))]
                    self._items.apply(found, {partition.partition: records[-1].offset + 1})
                    count, progressed = count + len(records), time.monotonic()
                progress(count)
                if time.monotonic() - progressed > _TIMEOUT_S:
                    raise Unavailable(
                        f"{self._settings.items_topic} could not be read to its end: nothing came"
                        f" for {_TIMEOUT_S:g} s"
                    )
            # The end of a transaction has an offset, too, and no record.
            self._items.apply([], {p.partition: consumer.position(p) for p in partitions})

    def close(self) -> None:
        """Let go of the connection."""
        with self._lock:
            self._closed = True
            if self._consumer is not None:
                self._consumer.close()
                self._consumer = None

    def _opened(self) -> KafkaConsumer:
        if self._consumer is None:
            topic = self._settings.items_topic
            with ExitStack() as unless_opened:
                consumer = unless_opened.enter_context(closing(open_reader(self._settings)))
                found = consumer.partitions_for_topic(topic)
                if not found:
                    raise Misconfigured(
                        f"Kafka at {self._settings.bootstrap_servers} has no topic {topic};"
                        " create the topics with `mindstream topics create`"
                    )
                consumer.assign([TopicPartition(topic, partition) for partition in sorted(found)])
                unless_opened.pop_all()
            self._consumer = consumer
        return self._consumer

    def _parsed(self, record: Any) -> ItemRecord | None:
        try:
            item_id = parse_item_id(record.key)
            if record.value is not None:
                parse_fields(item_id, record.value)
        except RejectedItem as exc:
            log.error(
                "item.rejected",
                topic=self._settings.items_topic,
                partition=record.partition,
                offset=record.offset,
                reason=exc.reason,
                detail=str(exc),
            )
            self._rejected(exc.reason)
            if exc.reason in ("no_key", "key_not_utf8", "invalid_key"):
                return None
        return ItemRecord(item_id, record.partition, record.offset, record.value)


def read_items(settings: KafkaSettings) -> AnnouncedItems:
    """Read the whole topic.

    Raises:
        Misconfigured: it is not there.
        Unavailable: Kafka does not answer.
    """
    items = AnnouncedItems()
    follower = ItemFollower(settings, items)
    try:
        follower.poll()
    finally:
        follower.close()
    return items


def announce_items(settings: KafkaSettings, records: Iterable[tuple[str, bytes | None]]) -> int:
    """Put items on the topic, in order; returns how many, once Kafka has them.

    Args:
        settings: where the topic is.
        records: item id, and its fields as JSON or None to withdraw it.
    """
    count, left = 0, iter(records)
    with translated(f"writing to {settings.items_topic}", settings):
        client: KafkaProducer = producer(settings, linger_ms=5)
        try:
            while some := list(islice(left, _POLL_RECORDS)):
                sent = [
                    client.send(settings.items_topic, key=item_id.encode(), value=value)
                    for item_id, value in some
                ]
                for future in sent:
                    future.get(timeout=_TIMEOUT_S)
                count += len(some)
        finally:
            client.close(timeout=_TIMEOUT_S)
    return count
