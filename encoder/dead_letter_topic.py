"""The dead-letter topic: records that can never be applied, and which of them were put back.

One partition. A *letter* is the rejected record as it lay on the clicks topic: key, value and
headers, followed by headers of ours, of which `mindstream.topic` is the first. What comes before
its last occurrence is the record's own, whatever its name. A *receipt* says that a letter was put
back on the clicks topic; it has the single header `mindstream.replayed`, the letter's offset, and
was written in the transaction that put the record back. A letter without a receipt is *pending*.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from kafka import TopicPartition

from encoder.kafka_client import read_to_end, translated
from encoder.records import Headers
from encoder.settings import KafkaSettings

PARTITION: Final = 0
"""Of the dead-letter topic: the only one that is written and read."""

_PREFIX: Final = "mindstream."
_FIRST: Final = _PREFIX + "topic"
_REPLAYED: Final = _PREFIX + "replayed"
_VALUE: Final = "value"
_STALL_S: Final = 90.0
"""Longer than a transaction stays open that a killed process left (transaction_timeout_s)."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A rejected record: where it lay, why it was rejected, and what it was.

    Attributes:
        topic: the clicks topic it lay on; `partition` and `offset` are its place there.
        timestamp_ms: the record's timestamp.
        reason: a constant, see `encoder.click.RejectedClick`.
        detail: what exactly is wrong.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    reason: str
    detail: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()

    def to_record(self) -> dict[str, Any]:
        """The letter as arguments of `KafkaProducer.send`, but for the topic."""
        # kafka-python sends neither a record without key and value nor a null header.
        nulls = [str(n) for n, (_, value) in enumerate(self.headers) if value is None]
        absent = self.key is None and self.value is None
        ours = {
            _FIRST: self.topic,
            _PREFIX + "partition": self.partition,
            _PREFIX + "offset": self.offset,
            _PREFIX + "timestamp": self.timestamp_ms,
            _PREFIX + "reason": self.reason,
            _PREFIX + "detail": self.detail,
        }
        if nulls or absent:
            ours[_PREFIX + "nulls"] = ",".join([_VALUE] * absent + nulls)
        return {
            "key": self.key,
            "value": b"" if absent else self.value,
            "headers": [
                *sendable(self.headers),
                *((name, str(value).encode()) for name, value in ours.items()),
            ],
            "partition": PARTITION,
        }


@dataclass(frozen=True, slots=True)
class Receipt:
    """Says that the letter at `letter_offset` was put back."""

    letter_offset: int

    def to_record(self) -> dict[str, Any]:
        """The receipt as arguments of `KafkaProducer.send`, but for the topic."""
        return {
            "value": b"",
            "headers": [(_REPLAYED, str(self.letter_offset).encode())],
            "partition": PARTITION,
        }


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record on the dead-letter topic that mindstream did not write."""


def sendable(headers: Headers) -> list[tuple[str, bytes]]:
    """Headers as kafka-python takes them: a null value becomes an empty one."""
    return [(name, b"" if value is None else value) for name, value in headers]


def read_record(
    key: bytes | None, value: bytes | None, headers: Headers
) -> DeadLetter | Receipt | Unreadable:
    """What a record of the dead-letter topic is."""
    names = [name for name, _ in headers]
    try:
        if names == [_REPLAYED]:
            return Receipt(int(headers[0][1] or b""))
        if _FIRST not in names:
            return Unreadable()
        start = len(names) - 1 - names[::-1].index(_FIRST)
        ours = {
            name.removeprefix(_PREFIX): (value or b"").decode() for name, value in headers[start:]
        }
        nulls = set(filter(None, ours.get("nulls", "").split(",")))
        return DeadLetter(
            topic=ours["topic"],
            partition=int(ours["partition"]),
            offset=int(ours["offset"]),
            timestamp_ms=int(ours["timestamp"]),
            reason=ours["reason"],
            detail=ours["detail"],
            key=key,
            value=None if _VALUE in nulls else value,
            headers=tuple(
                (name, None if str(n) in nulls else value)
                for n, (name, value) in enumerate(headers[:start])
            ),
        )
    except (KeyError, ValueError):
        return Unreadable()


def read_dead_letters(
    settings: KafkaSettings,
) -> Iterator[tuple[int, DeadLetter | Receipt | Unreadable]]:
    """Everything committed to the dead-letter topic, with its offset there, oldest first.

    Raises:
        Unavailable: Kafka does not answer.
    """
    topic = settings.dead_letters_topic
    asked = [TopicPartition(topic, PARTITION)]
    with translated(f"reading {topic}", settings):
        for records in read_to_end(settings, asked, timeout_s=_STALL_S):
            for record in records:
                yield record.offset, read_record(record.key, record.value, record.headers)


def put_back_offsets(settings: KafkaSettings) -> frozenset[int]:
    """The offsets of the letters that have a receipt."""
    return frozenset(
        found.letter_offset
        for _, found in read_dead_letters(settings)
        if isinstance(found, Receipt)
    )


def pending_letters(settings: KafkaSettings) -> Iterator[tuple[int, DeadLetter]]:
    """The letters of the clicks topic that were not put back, with their offsets, oldest first.

    Reads the topic twice, so that receipts and not letters are what must fit into memory. Letters
    of other clicks topics that share the dead-letter topic are left out.
    """
    put_back = put_back_offsets(settings)
    for offset, found in read_dead_letters(settings):
        if (
            isinstance(found, DeadLetter)
            and found.topic == settings.clicks_topic
            and offset not in put_back
        ):
            yield offset, found
