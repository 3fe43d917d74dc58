"""Reads the clicks topic from end to end, outside the group: for training and for audits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kafka import TopicPartition

from encoder.click import Click, Erasure, RejectedClick, parse_record
from encoder.kafka_client import admin_client, end_offsets, read_to_end, reader, translated
from encoder.settings import Settings


@dataclass(frozen=True, slots=True)
class RejectedRecord:
    """Where a record lies that the click contract rejects."""

    partition: int
    offset: int


def read_click_topic(
    settings: Settings, *, since_ms: int | None = None, ends: Mapping[int, int] | None = None
) -> Iterator[list[Click | Erasure | RejectedRecord]]:
    """Every record committed to the topic, parsed, some at a time; any order across partitions.

    Args:
        settings: where the topic is, and how far ahead clicks may lie.
        since_ms: start at the first record produced at or after this time; at the first of all if
            None.
        ends: read only what is before these offsets, by partition; all that is there if None.

    Raises:
        Unavailable: Kafka does not answer.
    """
    topic = settings.kafka.clicks_topic
    max_future_ms = int(settings.worker.max_future_s * 1000)
    with translated(f"reading {topic}", settings.kafka):
        partitions, start = _partitions(settings, topic, since_ms)
        for records in read_to_end(
            settings.kafka, partitions, timeout_s=settings.worker.open_transaction_s, start=start
        ):
            parsed: list[Click | Erasure | RejectedRecord] = []
            for record in records:
                if ends is not None and record.offset >= ends.get(record.partition, 0):
                    continue
                try:
                    parsed.append(
                        parse_record(
                            record.key, record.value, record.timestamp, max_future_ms=max_future_ms
                        )
                    )
                except RejectedClick:
                    parsed.append(RejectedRecord(record.partition, record.offset))
            yield parsed


def click_ends(settings: Settings) -> dict[int, int]:
    """The offset after the last click of each partition, to read the same clicks again later.

    Raises:
        Unavailable: Kafka does not answer.
    """
    topic = settings.kafka.clicks_topic
    with translated(f"reading {topic}", settings.kafka):
        partitions, _ = _partitions(settings, topic, None)
        found = end_offsets(settings.kafka, partitions)
    return {partition.partition: end for partition, end in found.items()}


def _partitions(
    settings: Settings, topic: str, since_ms: int | None
) -> tuple[list[TopicPartition], dict[TopicPartition, int]]:
    with admin_client(settings.kafka) as admin:
        (described,) = admin.describe_topics([topic])
    partitions = [
        TopicPartition(topic, partition["partition_index"]) for partition in described["partitions"]
    ]
    if since_ms is None:
        return partitions, {}
    with reader(settings.kafka) as consumer:
        found = consumer.offsets_for_times(dict.fromkeys(partitions, since_ms))
        ends = consumer.end_offsets(partitions)
    # A partition without records since then has no such offset: start at its end.
    return partitions, {p: found[p].offset if found.get(p) else ends[p] for p in partitions}
