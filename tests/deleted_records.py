"""Deletes a topic's oldest records, as retention would."""

from collections.abc import Mapping
from functools import partial

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import PolicyViolationError

from encoder.kafka_client import admin_client
from encoder.settings import KafkaSettings
from tests.deployment import wait_until


def delete_records(kafka: KafkaSettings, topic: str, ends: Mapping[int, int]) -> None:
    """Delete the records of each partition before an offset.

    The windows topic has to be made to allow it, which its broker hears of some time later.
    """
    with admin_client(kafka) as admin:
        if topic == kafka.windows_topic:
            policy = {"cleanup.policy": "compact,delete"}
            admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, policy)])
        for partition, end in ends.items():
            delete = partial(_deleted, admin, TopicPartition(topic, partition), end)
            wait_until(delete, f"records of {topic} to be deleted")


def _deleted(admin: KafkaAdminClient, partition: TopicPartition, end: int) -> bool:
    try:
        admin.delete_records({partition: end})
    except PolicyViolationError:
        return False
    return True
