"""A transaction outlasts a restart of the broker."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer
from kafka.admin import NewTopic
from kafka.errors import KafkaConnectionError

from deploy.local_broker import EXTERNAL, LocalBroker
from encoder.kafka_client import admin_client, producer
from encoder.kafka_net_client import net_client
from encoder.settings import KafkaSettings

TOPIC = "numbers"

# kafka-python drops sockets whose connection was refused without closing them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def own_broker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalBroker]:
    """One that may be killed."""
    monkeypatch.delenv(EXTERNAL, raising=False)
    with LocalBroker(tmp_path / "broker") as broker:
        yield broker


@pytest.fixture
def transactions(own_broker: LocalBroker) -> Iterator[KafkaProducer]:
    """A producer that has a transaction behind it."""
    settings = KafkaSettings(bootstrap_servers=own_broker.bootstrap_servers)
    with admin_client(settings) as admin:
        admin.create_topics([NewTopic(TOPIC, num_partitions=1, replication_factor=1)])
    one: Any = producer(settings, transactional_id="t", delivery_timeout_ms=40_000)
    one.init_transactions()
    transact(one)
    yield one
    one.close()


def transact(one: KafkaProducer) -> int:
    """Write one record; its offset."""
    one.begin_transaction()
    sent = one.send(TOPIC, b"1")
    one.flush(timeout=45)
    offset: int = sent.get(timeout=1).offset
    one.commit_transaction()
    return offset


def test_a_transaction_that_begins_while_the_broker_is_away_goes_on(
    own_broker: LocalBroker, transactions: KafkaProducer
) -> None:
    """kafka-python 3.0 alone loses the request that adds its partition, and waits for ever."""
    own_broker.kill()
    offsets: list[int] = []
    thread = threading.Thread(target=lambda: offsets.append(transact(transactions)))
    thread.start()
    time.sleep(1)
    own_broker.start()
    thread.join(60)
    assert len(offsets) == 1


def test_a_node_that_may_not_be_asked_yet_counts_as_not_connected() -> None:
    """Of a transaction's requests kafka-python repeats those only that met no connection."""
    client = net_client(bootstrap_servers="127.0.0.1:1", reconnect_backoff_ms=60_000)
    node = client.cluster.bootstrap_brokers()[0].node_id
    assert not client.await_ready(node, timeout_ms=5_000)
    assert isinstance(client.send(node, None).exception, KafkaConnectionError)
    client.close()
