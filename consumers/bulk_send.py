"""Sends many records of one partition at once, as `KafkaProducer.send` would one by one.

kafka-python 3.0 makes a future and takes several locks for every record, which costs more than the
record itself. A transaction wants to know only what became of all of them. This appends to the same
accumulator beneath the producer, so that flushing, sequence numbers and transactions are its own
(`benchmarks/bulk_send.py` prints what that saves).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kafka import KafkaProducer, TopicPartition
from kafka.errors import IllegalStateError, KafkaError, KafkaTimeoutError
from kafka.producer.producer_batch import ProducerBatch
from kafka.record.memory_records import MemoryRecordsBuilder


@dataclass(frozen=True, slots=True)
class SentBatch:
    """Records that lie in the log one after the other, once they are there.

    Attributes:
        count: how many.
    """

    partition: int
    count: int
    _future: Any

    def first_offset(self, timeout_s: float) -> int:
        """The offset of the first of them; -1 where the broker has them but does not tell where.

        Raises:
            KafkaError: they were not acknowledged, or not within `timeout_s`.
        """
        if not self._future.wait(timeout_s):
            raise KafkaTimeoutError(f"records were not acknowledged within {timeout_s:g} s")
        offset, _, error_of = self._future.value
        if error_of is not None:
            error: KafkaError = error_of(0)
            raise error
        return int(offset)


def send_all(
    producer: KafkaProducer,
    topic: str,
    partition: int,
    records: Iterable[tuple[bytes, bytes | None]],
) -> list[SentBatch]:
    """Hand keys and values to a producer, in order; it sends them when it is flushed, or before.

    Raises:
        KafkaError: the topic cannot be found within the producer's `max_block_ms`, or the producer
            can send no more.
    """
    target = TopicPartition(topic, partition)
    batches = _batches(producer._accumulator, target, records)
    if not batches:
        return []
    producer.partitions_for(topic)  # the sender must know where they go
    if producer._transaction_manager:
        producer._transaction_manager.maybe_add_partition_to_transaction(target)
    _enqueue(producer._accumulator, target, batches)
    producer._sender.wakeup()
    return [SentBatch(partition, batch.record_count, batch.produce_future) for batch in batches]


def _batches(
    accumulator: Any, target: TopicPartition, records: Iterable[tuple[bytes, bytes | None]]
) -> list[ProducerBatch]:
    config = accumulator.config
    now_ms = int(time.time() * 1000)
    batches: list[ProducerBatch] = []
    builder: MemoryRecordsBuilder | None = None
    for key, value in records:
        if builder is None or builder.append(now_ms, key, value) is None:
            builder = MemoryRecordsBuilder(
                config["message_version"], config["compression_attrs"], config["batch_size"]
            )
            builder.append(now_ms, key, value)  # the first one fits whatever its size
            batches.append(ProducerBatch(target, builder))
    return batches


def _enqueue(accumulator: Any, target: TopicPartition, batches: list[ProducerBatch]) -> None:
    accumulator._appends_in_progress.increment()
    try:
        with accumulator._tp_lock(target):
            if accumulator._closed:
                raise IllegalStateError("the producer is closed")
            accumulator._batches[target].extend(batches)
            for batch in batches:
                accumulator._incomplete.add(batch)
    finally:
        accumulator._appends_in_progress.decrement()
