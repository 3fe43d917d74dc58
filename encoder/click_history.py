"""Reads the clicks topic, outside the group: all of it for audits, or from offset to offset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kafka import TopicPartition

from encoder.click import Click, Erasure, RejectedClick, parse_record
from encoder.errors import Misconfigured
from encoder.kafka_client import (
    admin_client,
    read_blocks_to_end,
    read_to_end,
    reader,
    translated,
)
from encoder.settings import Settings


@dataclass(frozen=True, slots=True)
class RejectedRecord:
    """Where a record lies that the click contract rejects."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class ClicksExtent:
    """What the clicks topic holds at a moment.

    Attributes:
        topic_id: Kafka's own id of the topic; another one after it was deleted and created again.
        begins: the first offset of each partition; retention moves it.
        ends: the offset after the last record, open transactions included.
    """

    topic_id: str
    begins: dict[int, int]
    ends: dict[int, int]


@dataclass(frozen=True, slots=True)
class ClickBlock:
    """What some records of a partition say, in their order; rejected ones are left out.

    Attributes:
        next_offset: where the partition goes on after them.
    """

    partition: int
    next_offset: int
    events: list[Click | Erasure]


def read_click_topic(settings: Settings) -> Iterator[list[Click | Erasure | RejectedRecord]]:
    """Every record committed to the topic, parsed, some at a time; any order across partitions.

    Args:
        settings: where the topic is, and how far ahead clicks may lie.

    Raises:
        Unavailable: Kafka does not answer.
    """
    topic = settings.kafka.clicks_topic
    max_future_ms = int(settings.worker.max_future_s * 1000)
    with translated(f"reading {topic}", settings.kafka):
        partitions, _ = _partitions(settings, topic)
        for records in read_to_end(
            settings.kafka, partitions, timeout_s=settings.worker.open_transaction_s
        ):
            parsed: list[Click | Erasure | RejectedRecord] = []
            for record in records:
                try:
                    parsed.append(
                        parse_record(
                            record.key, record.value, record.timestamp, max_future_ms=max_future_ms
                        )
                    )
                except RejectedClick:
                    parsed.append(RejectedRecord(record.partition, record.offset))
            yield parsed


def clicks_extent(settings: Settings) -> ClicksExtent:
    """What the topic holds now.

    Raises:
        Misconfigured: there is no such topic.
        Unavailable: Kafka does not answer.
    """
    topic = settings.kafka.clicks_topic
    with translated(f"looking at {topic}", settings.kafka):
        partitions, topic_id = _partitions(settings, topic)
        with reader(settings.kafka, "read_uncommitted") as consumer:
            begins, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
    return ClicksExtent(
        topic_id,
        {one.partition: begins[one] for one in partitions},
        {one.partition: ends[one] for one in partitions},
    )


def read_click_blocks(
    settings: Settings, starts: Mapping[int, int], ends: Mapping[int, int]
) -> Iterator[ClickBlock]:
    """The committed records of some partitions from one offset to before another.

    Args:
        settings: where the topic is, and how far ahead clicks may lie.
        starts: of each partition to be read; where retention has deleted it, what is left is read.
        ends: of the same partitions.

    Raises:
        Unavailable: Kafka does not answer.
    """
    topic = settings.kafka.clicks_topic
    max_future_ms = int(settings.worker.max_future_s * 1000)
    asked = {
        TopicPartition(topic, number): end for number, end in ends.items() if starts[number] < end
    }
    with translated(f"reading {topic}", settings.kafka):
        for blocks in read_blocks_to_end(
            settings.kafka,
            list(asked),
            timeout_s=settings.worker.open_transaction_s,
            start={one: starts[one.partition] for one in asked},
            ends=asked,
        ):
            for block in blocks:
                end = ends[block.partition]
                events: list[Click | Erasure] = []
                for offset, at_ms, key, value in zip(
                    block.offsets, block.timestamps_ms, block.keys, block.values, strict=True
                ):
                    if offset >= end:
                        break
                    try:
                        events.append(parse_record(key, value, at_ms, max_future_ms=max_future_ms))
                    except RejectedClick:
                        continue  # a worker sets it aside
                yield ClickBlock(block.partition, min(block.offset + 1, end), events)


def _partitions(settings: Settings, topic: str) -> tuple[list[TopicPartition], str]:
    with admin_client(settings.kafka) as admin:
        if topic not in admin.list_topics():
            raise Misconfigured(
                f"Kafka at {settings.kafka.bootstrap_servers} has no topic {topic}; create the"
                " topics with `mindstream topics create`"
            )
        (described,) = admin.describe_topics([topic])
    partitions = [
        TopicPartition(topic, partition["partition_index"]) for partition in described["partitions"]
    ]
    return partitions, str(described["topic_id"])
