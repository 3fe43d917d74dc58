"""Records, and whole batches of them in columns, against kafka-python on a real broker."""

import uuid
from collections.abc import Iterator
from contextlib import closing

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords

from deploy.local_broker import LocalBroker
from encoder.kafka_client import client_config, producer, read_blocks_to_end, read_to_end, reader
from encoder.records import Headers, RecordBlock, _PartitionBlocks, hand_out_blocks
from encoder.settings import KafkaSettings, load_settings

Row = tuple[int, int, bytes | None, bytes | None, Headers]


@pytest.fixture
def settings(broker: LocalBroker) -> KafkaSettings:
    """The broker's; topics are made as they are written to."""
    kafka = load_settings().kafka
    return kafka.model_copy(update={"bootstrap_servers": broker.bootstrap_servers})


@pytest.fixture
def target(settings: KafkaSettings) -> TopicPartition:
    """A partition of its own."""
    from kafka.admin import NewTopic

    from encoder.kafka_client import admin_client

    topic = f"t{uuid.uuid4().hex[:10]}"
    with admin_client(settings) as admin:
        admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
    return TopicPartition(topic, 0)


@pytest.fixture(params=[None, "gzip", "lz4"])
def sender(settings: KafkaSettings, request: pytest.FixtureRequest) -> Iterator[KafkaProducer]:
    """A transactional producer, of each compression."""
    client = producer(
        settings, transactional_id=uuid.uuid4().hex, compression_type=request.param, linger_ms=5
    )
    client.init_transactions()
    yield client
    client.close()


def rows(blocks: list[RecordBlock]) -> list[Row]:
    return [
        row
        for block in blocks
        for row in zip(
            block.offsets,
            block.timestamps_ms,
            block.keys,
            block.values,
            block.headers,
            strict=True,
        )
    ]


def read_by_kafka_python(settings: KafkaSettings, target: TopicPartition) -> list[Row]:
    with closing(
        KafkaConsumer(**client_config(settings), group_id=None, isolation_level="read_committed")
    ) as consumer:
        consumer.assign([target])
        (end,) = consumer.end_offsets([target]).values()
        consumer.seek_to_beginning(target)
        found: list[Row] = []
        while consumer.position(target) < end:
            for polled in consumer.poll(timeout_ms=200).values():
                found += [
                    (one.offset, one.timestamp, one.key, one.value, tuple(one.headers))
                    for one in polled
                ]
    return found


def test_blocks_and_records_hold_what_kafka_python_reads(
    settings: KafkaSettings, target: TopicPartition, sender: KafkaProducer
) -> None:
    """Keys, values, tombstones, headers, sizes of one to four bytes; aborted ones are left out."""
    values = [b"", b"x" * 63, b"y" * 64, b"z" * 9000, None, b"w" * 300_000]
    for round_ in range(6):
        sender.begin_transaction()
        for number, value in enumerate(values):
            key = None if number == 1 else f"{round_}-{number}".encode()
            headers = [("name", b"value"), ("empty", b"")] if number == 2 else []
            sender.send(
                target.topic,
                key=key,
                value=value,
                partition=0,
                headers=headers,
                timestamp_ms=1_700_000_000_000 + 1000 * number - round_,
            )
        if round_ % 3 == 1:
            sender.flush()
            sender.abort_transaction()
        else:
            sender.commit_transaction()
    expected = read_by_kafka_python(settings, target)
    found = [
        block for blocks in read_blocks_to_end(settings, [target], timeout_s=20) for block in blocks
    ]
    assert len(expected) == 4 * len(values)
    assert rows(found) == expected
    assert len(found) < len(expected)
    single = [one for some in read_to_end(settings, [target], timeout_s=20) for one in some]
    assert [tuple(one)[1:] for one in single] == expected


def send_ten(sender: KafkaProducer, target: TopicPartition) -> None:
    """Records 0 to 9, in one batch."""
    sender.begin_transaction()
    for number in range(10):
        sender.send(target.topic, key=b"u", value=b"%d" % number, partition=0)
    sender.commit_transaction()


def test_some_records_of_a_batch_can_be_polled(
    settings: KafkaSettings, target: TopicPartition, sender: KafkaProducer
) -> None:
    """The position is that of the next one, and a poll from there goes on with it."""
    send_ten(sender, target)
    found: list[int] = []
    with reader(settings) as consumer:
        consumer.assign([target])
        while len(found) < 12:
            for polled in consumer.poll(timeout_ms=200, max_records=3).values():
                assert len(polled) <= 3
                found += [int(one.value) for one in polled]
                assert consumer.position(target) == found[-1] + 1
                if len(found) == 6:
                    consumer.seek(target, 4)
    assert found == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9]


def test_blocks_begin_where_they_were_asked_to(
    settings: KafkaSettings, target: TopicPartition, sender: KafkaProducer
) -> None:
    """Also in the middle of a batch, which comes from the broker whole."""
    send_ten(sender, target)
    with reader(settings) as consumer:
        hand_out_blocks(consumer)
        consumer.assign([target])
        consumer.seek(target, 7)
        blocks: list[RecordBlock] = []
        while consumer.position(target) < 10:
            for polled in consumer.poll(timeout_ms=200).values():
                blocks += polled
    assert [row[3] for row in rows(blocks)] == [b"7", b"8", b"9"]


@pytest.mark.parametrize("cut", [1, 9])
def test_a_batch_that_ends_too_early_is_corrupt(cut: int) -> None:
    """A record that says it is longer than what is there is an error that names the offset."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=False,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1000,
    )
    builder.append(0, 1000, b"key", b"a value", [])
    whole = bytearray(builder.build())
    del whole[-cut:]
    whole[8:12] = (len(whole) - 12).to_bytes(4, "big")
    target = TopicPartition("t", 0)
    part = _PartitionBlocks(0, target, MemoryRecords(bytes(whole)), check_crcs=False)
    with pytest.raises(CorruptRecordError, match="0"):
        part.take(1)
    part = _PartitionBlocks(0, target, MemoryRecords(bytes(whole)))
    with pytest.raises(CorruptRecordError, match=r"t\[0\] at offset 0: wrong checksum"):
        part.take(1)
