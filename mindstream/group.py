"""How far the worker group is with the clicks topic."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from kafka import KafkaAdminClient, TopicPartition
from kafka.errors import RetriableError

from encoder.errors import Unavailable
from encoder.kafka_client import admin_client, end_offsets, translated
from encoder.settings import Settings

_POLL_S: Final = 0.1


def wait_until_consumed(
    settings: Settings,
    partitions: int,
    *,
    stalled_after_s: float,
    progress: Callable[[int], None] = lambda lag: None,
) -> None:
    """Wait until every click now on the topic is committed by the group.

    Args:
        settings: which topic and which group.
        partitions: of the clicks topic.
        stalled_after_s: the longest wait without progress.
        progress: is told how many records are still ahead.

    Raises:
        Unavailable: the group makes no progress.
    """
    topic, group = settings.kafka.clicks_topic, settings.worker.group_id
    asked = [TopicPartition(topic, partition) for partition in range(partitions)]
    with translated("watching the group", settings.kafka):
        ends = end_offsets(settings.kafka, asked)
        least, progressed = None, time.monotonic()
        with admin_client(settings.kafka) as admin:
            while True:
                committed = _committed(admin, group, asked)
                lag = sum(
                    max(0, end - max(0, committed.get(partition, 0)))
                    for partition, end in ends.items()
                )
                progress(lag)
                if lag == 0:
                    return
                if least is None or lag < least:
                    least, progressed = lag, time.monotonic()
                elif time.monotonic() - progressed > stalled_after_s:
                    raise Unavailable(
                        f"group {group} has not moved for {stalled_after_s:g} s with {lag} records"
                        f" of {topic} ahead of it"
                    )
                time.sleep(_POLL_S)


def _committed(
    admin: KafkaAdminClient, group: str, partitions: list[TopicPartition]
) -> dict[TopicPartition, int]:
    try:
        committed = admin.list_group_offsets({group: partitions})[group]
    except RetriableError:
        return {}  # the group's coordinator is only being chosen: nothing can be committed yet
    return {partition: offset.offset for partition, offset in committed.items()}
