"""Writes the windows topic anew: appends windows, and discards what lies before them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final

from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import AlterConfigOp, ConfigResource, ConfigResourceType
from kafka.errors import PolicyViolationError

from consumers.window_store import WindowStore
from consumers.window_wire import to_wires
from encoder.errors import Misconfigured
from encoder.kafka_client import admin_client, producer, translated
from encoder.settings import Settings
from encoder.windows_topic import read_extents

_WINDOWS_AT_ONCE: Final = 10_000
_PROPAGATED_S: Final = 30.0
_POLL_S: Final = 0.1
# Records can be deleted only where the policy allows it. Without any limit nothing else goes.
_DISCARDING: Final = {
    "cleanup.policy": "compact,delete",
    "retention.ms": "-1",
    "retention.bytes": "-1",
}
_KEEPING: Final = {
    "cleanup.policy": "compact",
    "retention.ms": (AlterConfigOp.DELETE, None),
    "retention.bytes": (AlterConfigOp.DELETE, None),
}


class WindowsLog:
    """The windows topic, open for being written anew. Made by `rewriting`."""

    def __init__(self, settings: Settings, admin: KafkaAdminClient, client: KafkaProducer) -> None:
        self._settings = settings
        self._admin = admin
        self._producer = client

    def append(self, partition: int, store: WindowStore) -> int:
        """Write all windows of a partition.

        Returns:
            The offset before which nothing is needed any more: of the first window written, or the
            end of the log without any.
        """
        topic, budget_s = self._settings.kafka.windows_topic, self._settings.worker.step_budget_s
        first = read_extents(self._settings.kafka, [partition])[partition].end
        users = store.users(partition)
        with translated(f"writing {topic}", self._settings.kafka):
            while some := list(islice(users, _WINDOWS_AT_ONCE)):
                user_ids, packed = zip(*some, strict=True)
                sent = [
                    self._producer.send(
                        topic, key=user_id.encode(), value=value, partition=partition
                    )
                    for user_id, value in zip(user_ids, to_wires(packed, store.codes), strict=True)
                ]
                self._producer.flush(timeout=budget_s)
                for future in sent:
                    future.get(timeout=budget_s)
        return first

    def discard_before(self, partition: int, offset: int) -> None:
        """Delete all records of a partition before an offset."""
        topic = TopicPartition(self._settings.kafka.windows_topic, partition)
        with translated(f"deleting records of {topic.topic}", self._settings.kafka):
            deadline = time.monotonic() + _PROPAGATED_S
            while True:
                try:
                    self._admin.delete_records({topic: offset})
                    return
                except PolicyViolationError:  # the broker has not heard of the new policy yet
                    if time.monotonic() > deadline:
                        raise
                time.sleep(_POLL_S)


@contextmanager
def rewriting(settings: Settings) -> Iterator[WindowsLog]:
    """Open the windows topic for being written anew; nobody else may write to it meanwhile.

    A process killed inside leaves the topic with a policy that allows deletion and asks for none;
    the next use ends with the policy that `mindstream topics create` gives.
    """
    kafka = settings.kafka
    topic = kafka.windows_topic
    with translated(f"opening {topic}", kafka):
        client = producer(kafka, compression_type="lz4")
    try:
        with translated(f"configuring {topic}", kafka), admin_client(kafka) as admin:
            _configure(admin, topic, _DISCARDING)
            try:
                yield WindowsLog(settings, admin, client)
            finally:
                _configure(admin, topic, _KEEPING)
    finally:
        client.close(timeout=settings.worker.stop_budget_s)


def _configure(admin: KafkaAdminClient, topic: str, configs: Mapping[str, Any]) -> None:
    asked = ConfigResource(ConfigResourceType.TOPIC, topic, dict(configs))
    outcome = admin.alter_configs([asked])["topic"][topic]
    if outcome != "OK":
        raise Misconfigured(
            f"Kafka refused to set {', '.join(configs)} of {topic}: {outcome}; a rebuild needs the"
            " rights to alter the topic's configuration and to delete its records"
        )
