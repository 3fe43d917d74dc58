"""The worker group as seen from outside: how far it is, who is in it, and its offsets."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from kafka import KafkaAdminClient, OffsetAndMetadata, TopicPartition
from kafka.errors import NoError, RetriableError, UnknownMemberIdError

from encoder.errors import Misconfigured, Unavailable
from encoder.kafka_client import admin_client, end_offsets, translated
from encoder.settings import Settings
from mindstream.records_ahead import RecordsAhead

T = TypeVar("T")

_POLL_S: Final = 0.1
_COORDINATOR_S: Final = 30.0


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
        ahead = RecordsAhead(settings.kafka, asked)
        with admin_client(settings.kafka) as admin:
            while True:
                committed = _committed(admin, group, asked)
                lag = sum(
                    ahead.count(partition, committed.get(partition, -1), end)
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


def wait_until_committed(
    settings: Settings, partition: int, offset: int, *, stalled_after_s: float
) -> None:
    """Wait until the group has committed one record of the clicks topic.

    Raises:
        Unavailable: the group makes no progress on the partition.
    """
    group = settings.worker.group_id
    asked = TopicPartition(settings.kafka.clicks_topic, partition)
    with translated("watching the group", settings.kafka), admin_client(settings.kafka) as admin:
        last, progressed = -1, time.monotonic()
        while True:
            committed = _committed(admin, group, [asked]).get(asked, -1)
            if committed > offset:
                return
            if committed > last:
                last, progressed = committed, time.monotonic()
            elif time.monotonic() - progressed > stalled_after_s:
                raise Unavailable(
                    f"{asked.topic}[{partition}] offset {offset} is written, but group {group} has"
                    f" not moved from offset {max(committed, 0)} for {stalled_after_s:g} s; it will"
                    " be applied once a worker runs"
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


def refuse_members(settings: Settings) -> None:
    """See that no worker is in the group.

    Raises:
        Misconfigured: there are members; tells which.
    """
    group = settings.worker.group_id
    with translated("looking at the group", settings.kafka), admin_client(settings.kafka) as admin:
        found = _coordinated(lambda: admin.describe_groups([group])[group])
    members = [one["group_instance_id"] or one["member_id"] for one in found["members"]]
    if members:
        raise Misconfigured(
            f"group {group} has members: {', '.join(members)}; stop all workers first. A worker"
            " that was killed stays a member until its session ends"
            f" (MINDSTREAM_WORKER__SESSION_TIMEOUT_S, {settings.worker.session_timeout_s:g} s)"
        )


def committed_offsets(settings: Settings, partitions: int) -> dict[int, int]:
    """The group's offset for each partition of the clicks, where it has one."""
    asked = [TopicPartition(settings.kafka.clicks_topic, one) for one in range(partitions)]
    group = settings.worker.group_id
    with translated("reading the group", settings.kafka), admin_client(settings.kafka) as admin:
        found = _coordinated(lambda: admin.list_group_offsets({group: asked})[group])
    return {one.partition: at.offset for one, at in found.items() if at.offset >= 0}


def set_offsets(settings: Settings, offsets: dict[int, tuple[int, str]]) -> None:
    """Set offsets and their metadata for partitions of the clicks; the group must be empty.

    Raises:
        Misconfigured: a worker is in the group. Nothing is set.
    """
    group = settings.worker.group_id
    wanted = {
        TopicPartition(settings.kafka.clicks_topic, partition): OffsetAndMetadata(offset, note, -1)
        for partition, (offset, note) in offsets.items()
    }

    def alter() -> None:
        errors = set(admin.alter_group_offsets(group, wanted).values()) - {NoError}
        if UnknownMemberIdError in errors:
            raise Misconfigured(f"a worker has joined group {group}; stop all workers first")
        if errors:
            raise errors.pop()

    with translated("setting offsets", settings.kafka), admin_client(settings.kafka) as admin:
        _coordinated(alter)


def _coordinated(ask: Callable[[], T]) -> T:
    """Ask the group's coordinator, again while it is only being chosen."""
    deadline = time.monotonic() + _COORDINATOR_S
    while True:
        try:
            return ask()
        except RetriableError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_POLL_S)
