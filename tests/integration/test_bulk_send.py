"""Records sent many at a time lie on the topic as if they had been sent one by one."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from kafka import KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from kafka.errors import KafkaError, MessageSizeTooLargeError

from consumers.bulk_send import send_all
from deploy.local_broker import LocalBroker
from encoder.kafka_client import admin_client, producer, read_to_end
from encoder.settings import KafkaSettings

BATCH_BYTES = 1 << 14


@pytest.fixture
def kafka(broker: LocalBroker) -> KafkaSettings:
    """Where the broker is."""
    return KafkaSettings(bootstrap_servers=broker.bootstrap_servers)


@pytest.fixture
def topic(kafka: KafkaSettings) -> str:
    """A topic of two partitions that takes records of up to 20 kB."""
    name = f"bulk.{uuid.uuid4().hex[:8]}"
    small = {"max.message.bytes": "20000"}
    with admin_client(kafka) as admin:
        admin.create_topics(
            [NewTopic(name, num_partitions=2, replication_factor=1, topic_configs=small)]
        )
    return name


@pytest.fixture
def sender(kafka: KafkaSettings) -> Iterator[KafkaProducer]:
    """A producer with transactions."""
    one: Any = producer(kafka, transactional_id=uuid.uuid4().hex, batch_size=BATCH_BYTES)
    one.init_transactions()
    yield one
    one.close()


def on_topic(kafka: KafkaSettings, topic: str, partition: int) -> list[tuple[int, Any, Any]]:
    """Offset, key and value of all that is committed."""
    read = read_to_end(kafka, [TopicPartition(topic, partition)], timeout_s=30)
    return [(one.offset, one.key, one.value) for some in read for one in some]


def test_all_of_them_are_there_in_order_and_where_it_says(
    kafka: KafkaSettings, topic: str, sender: KafkaProducer
) -> None:
    """Through several batches, with empty values and with ones beyond a batch."""
    records: list[tuple[bytes, bytes | None]] = [
        (b"key-%d" % number, None if number % 7 == 0 else b"%d " % number * (number % 50))
        for number in range(1000)
    ]
    records[500] = (b"large", bytes(BATCH_BYTES + 100))
    for number in range(2):  # the second time behind the end of a transaction
        sender.begin_transaction()
        sent = send_all(sender, topic, 1, records)
        nothing = send_all(sender, topic, 0, [])
        sender.flush(timeout=30)
        firsts = [one.first_offset(1) for one in sent]
        sender.commit_transaction()
        start = number * (len(records) + 1)
        assert len(sent) > 3
        assert not nothing
        assert sum(one.count for one in sent) == len(records)
        ends = [first + one.count for first, one in zip(firsts, sent, strict=True)]
        assert [start, *ends] == [*firsts, start + len(records)]
        found = on_topic(kafka, topic, 1)[-len(records) :]
        assert found == [(start + at, *record) for at, record in enumerate(records)]
    assert not on_topic(kafka, topic, 0)


def test_what_is_rolled_back_is_not_there(
    kafka: KafkaSettings, topic: str, sender: KafkaProducer
) -> None:
    """Like any record of a transaction."""
    sender.begin_transaction()
    send_all(sender, topic, 0, [(b"key", b"value")])
    sender.flush(timeout=30)
    sender.abort_transaction()
    assert not on_topic(kafka, topic, 0)


def test_what_the_broker_refuses_raises(topic: str, sender: KafkaProducer) -> None:
    """The error of the batch that it refused."""
    sender.begin_transaction()
    good, bad = send_all(sender, topic, 0, [(b"good", b""), (b"bad", bytes(30_000))])
    sender.flush(timeout=30)
    assert good.first_offset(1) == 0
    with pytest.raises(MessageSizeTooLargeError):
        bad.first_offset(1)
    sender.abort_transaction()


def test_a_producer_that_is_closed_takes_nothing(topic: str, sender: KafkaProducer) -> None:
    """As `send` does."""
    sender.begin_transaction()
    send_all(sender, topic, 0, [(b"key", b"value")])
    sender.close()
    with pytest.raises(KafkaError):
        send_all(sender, topic, 0, [(b"key", b"value")])
