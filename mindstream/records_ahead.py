"""How many records a group has ahead of it, where offsets alone do not tell.

A transaction ends with a mark that takes an offset too, but that no consumer ever sees. So a group
that has consumed everything may stay behind the end.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from kafka import TopicPartition

from encoder.kafka_client import reader
from encoder.settings import KafkaSettings

_LOOK_S: Final = 2.0
_POLL_MS: Final = 200


class RecordsAhead:
    """Looks into the partitions of a topic, but only where the group does not move."""

    def __init__(self, settings: KafkaSettings, partitions: Sequence[TopicPartition]) -> None:
        self._settings = settings
        with reader(settings) as consumer:
            self._beginnings: dict[TopicPartition, int] = consumer.beginning_offsets(partitions)
        self._committed: dict[TopicPartition, int] = {}
        self._found: dict[tuple[TopicPartition, int], bool] = {}

    def count(self, partition: TopicPartition, committed: int, end: int) -> int:
        """Offsets from the committed one to the end, or 0 if no record is left there.

        Args:
            committed: next to read, -1 if the group has committed nothing.
            end: after the last record or mark.
        """
        start = max(committed, self._beginnings[partition])
        if start >= end:
            return 0
        stopped = self._committed.get(partition) == committed
        self._committed[partition] = committed
        return end - start if not stopped or self._any_record(partition, start, end) else 0

    def _any_record(self, partition: TopicPartition, start: int, end: int) -> bool:
        if (partition, start) not in self._found:
            found = self._look(partition, start, end)
            if found is None:
                return True  # a transaction is open, or the broker slow: look again next time
            self._found[partition, start] = found
        return self._found[partition, start]

    def _look(self, partition: TopicPartition, start: int, end: int) -> bool | None:
        # A consumer of its own each time: one that pauses and resumes partitions may never get
        # past a mark.
        with reader(self._settings) as consumer:
            consumer.assign([partition])
            consumer.seek(partition, start)
            deadline = time.monotonic() + _LOOK_S
            while time.monotonic() < deadline:
                polled = consumer.poll(timeout_ms=_POLL_MS, max_records=1)
                if any(record.offset < end for records in polled.values() for record in records):
                    return True
                if polled or consumer.position(partition) >= end:
                    return False
        return None
