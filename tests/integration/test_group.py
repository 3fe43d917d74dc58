"""How far a group is, where transactions leave marks at the end of partitions."""

import threading

import pytest
from kafka import KafkaProducer, OffsetAndMetadata, TopicPartition

from encoder.click import Click
from encoder.errors import Unavailable
from encoder.kafka_client import admin_client, producer
from mindstream.group import wait_until_consumed
from tests.deployment import DEADLINE_S, T0, Deployment, wait_until

PARTITION = 1


def transactional(deployment: Deployment) -> KafkaProducer:
    client = producer(deployment.settings.kafka, transactional_id=deployment.release.name)
    client.init_transactions()
    return client


def send(deployment: Deployment, client: KafkaProducer, n: int) -> None:
    key, value = Click(f"u{n}", "item-1", T0 + n).to_record()
    topic = deployment.settings.kafka.clicks_topic
    client.send(topic, key=key, value=value, partition=PARTITION)
    client.flush()


def commit_offset(deployment: Deployment, offset: int) -> None:
    settings = deployment.settings
    partition = TopicPartition(settings.kafka.clicks_topic, PARTITION)
    with admin_client(settings.kafka) as admin:
        admin.alter_group_offsets(
            settings.worker.group_id, {partition: OffsetAndMetadata(offset, "", -1)}
        )


def assert_not_consumed(deployment: Deployment) -> None:
    with pytest.raises(Unavailable, match="has not moved"):
        wait_until_consumed(deployment.settings, deployment.partitions, stalled_after_s=1.5)


def test_a_mark_after_the_last_click_is_nothing_to_wait_for(deployment: Deployment) -> None:
    """Neither that of a commit nor records that were aborted; but a click is."""
    client = transactional(deployment)
    client.begin_transaction()
    send(deployment, client, 1)
    send(deployment, client, 2)
    client.commit_transaction()  # offsets 0 and 1, the mark at 2
    assert_not_consumed(deployment)
    commit_offset(deployment, 1)
    assert_not_consumed(deployment)
    commit_offset(deployment, 2)
    deployment.wait_until_consumed()
    client.begin_transaction()
    send(deployment, client, 3)
    client.abort_transaction()  # offset 3, the mark at 4
    deployment.wait_until_consumed()
    client.close()


def test_a_group_that_committed_nothing_may_have_nothing_to_consume(deployment: Deployment) -> None:
    """A partition that holds only what was aborted is consumed before any worker comes."""
    deployment.wait_until_consumed()
    client = transactional(deployment)
    client.begin_transaction()
    send(deployment, client, 1)
    client.abort_transaction()
    client.close()
    deployment.wait_until_consumed()


def test_a_transaction_that_is_open_is_waited_for(deployment: Deployment) -> None:
    """Until it has ended, its clicks may have to be consumed."""
    client = transactional(deployment)
    client.begin_transaction()
    send(deployment, client, 1)
    assert_not_consumed(deployment)
    told: list[int] = []
    waiting = threading.Thread(
        target=wait_until_consumed,
        args=(deployment.settings, deployment.partitions),
        kwargs={"stalled_after_s": DEADLINE_S, "progress": told.append},
    )
    waiting.start()
    wait_until(lambda: len(told) > 3, "the wait to have looked")
    assert set(told) == {1}
    client.abort_transaction()
    waiting.join(DEADLINE_S)
    assert told[-1] == 0
    client.close()
