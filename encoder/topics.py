"""The topics that mindstream lives on: made once, checked at every start."""

from __future__ import annotations

from typing import Final

from encoder.errors import Misconfigured
from encoder.kafka_client import MAX_RECORD_BYTES, admin_client, translated
from encoder.settings import KafkaSettings, Settings

_LONGEST_SEGMENT_MS: Final = 7 * 86_400_000
# The newest segment of a partition is never compacted: whoever takes the partition over reads all
# that lies there, however often a user was written. Kafka's own default is 1 GiB; a segment must
# hold the largest record.
_WINDOWS_SEGMENT_BYTES: Final = MAX_RECORD_BYTES
# A release that is trained later must hear of a withdrawal, too: it is never compacted away.
_FOR_EVER_MS: Final = 100 * 365 * 86_400_000


def create_topics(settings: Settings, *, partitions: int, replication: int) -> list[str]:
    """Create those of the five topics that do not exist yet.

    Args:
        settings: names of the topics, and the retention of clicks and of dead letters.
        partitions: of the clicks and of the windows topic, which must have the same number, and of
            the items topic.
        replication: copies of every partition; 3 in production, 1 on a single broker.

    Returns:
        The names of the topics that were created.
    """
    kafka = settings.kafka
    clicks = _kept(settings.worker.click_retention_s)
    dead_letters = _kept(settings.worker.dead_letter_retention_s)
    large = {"max.message.bytes": str(MAX_RECORD_BYTES)}
    compacted = {"cleanup.policy": "compact"}
    wanted = {
        kafka.clicks_topic: (partitions, clicks),
        kafka.windows_topic: (
            partitions,
            compacted | large | {"segment.bytes": str(_WINDOWS_SEGMENT_BYTES)},
        ),
        kafka.dead_letters_topic: (1, dead_letters | large),
        kafka.releases_topic: (1, compacted),
        kafka.items_topic: (partitions, compacted | {"delete.retention.ms": str(_FOR_EVER_MS)}),
    }
    with translated("creating topics", kafka), admin_client(kafka) as admin:
        existing = set(admin.list_topics())
        missing = {
            name: {
                "num_partitions": count,
                "replication_factor": replication,
                "configs": configs,
            }
            for name, (count, configs) in wanted.items()
            if name not in existing
        }
        if missing:
            admin.create_topics(missing, wait_for_metadata=True)
    return sorted(missing)


def _kept(retention_s: float) -> dict[str, str]:
    retention_ms = int(retention_s * 1000)
    # Records go a segment at a time: no segment may take longer than the retention to close.
    segment_ms = min(retention_ms, _LONGEST_SEGMENT_MS)
    return {"retention.ms": str(retention_ms), "segment.ms": str(segment_ms)}


def check_topics(settings: KafkaSettings) -> int:
    """See that every topic exists and that windows can follow clicks partition by partition.

    Returns:
        The number of partitions of the clicks topic.

    Raises:
        Misconfigured: names the topic at fault and what to do.
    """
    names = [
        settings.clicks_topic,
        settings.windows_topic,
        settings.dead_letters_topic,
        settings.releases_topic,
        settings.items_topic,
    ]
    with translated("looking at the topics", settings), admin_client(settings) as admin:
        existing = set(admin.list_topics())
        missing = [name for name in names if name not in existing]
        if missing:
            raise Misconfigured(
                f"Kafka at {settings.bootstrap_servers} has no topic {', '.join(missing)};"
                " create the topics with `mindstream topics create`, or grant this user the rights"
                " that docs/security.md lists: topics that it may not describe look absent"
            )
        counts = {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics(names)}
    clicks, windows = counts[settings.clicks_topic], counts[settings.windows_topic]
    if clicks != windows:
        raise Misconfigured(
            f"{settings.clicks_topic} has {clicks} partitions and {settings.windows_topic} has"
            f" {windows}; a window is kept on the partition of its user's clicks, so the numbers"
            " must be equal"
        )
    if counts[settings.releases_topic] != 1:
        raise Misconfigured(
            f"{settings.releases_topic} has {counts[settings.releases_topic]} partitions; releases"
            " are ordered, so it must have 1"
        )
    return clicks
