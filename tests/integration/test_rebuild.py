"""A damaged windows topic is noticed before it is used, and rebuilt from the clicks."""

import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import structlog
from kafka import TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from consumers.worker import run_worker
from deploy.local_broker import LocalBroker
from deploy.local_milvus import LocalMilvusLite
from encoder.errors import Misconfigured
from encoder.interest_index import InterestIndex
from encoder.interests import InterestRows
from encoder.kafka_client import admin_client, end_offsets, producer, read_to_end
from encoder.release_topic import read_releases
from encoder.topics import create_topics
from encoder.window import CorruptWindow, Window
from encoder.windows_topic import REBUILDING, check_extent, parse_window_record, read_extents
from mindstream.audit import Audit, fold
from mindstream.environment import environment_of
from mindstream.group import committed_offsets, set_offsets
from mindstream.rebuild import Rebuilt, Step, rebuild_windows
from tests.deleted_records import delete_records
from tests.deployment import DEADLINE_S, T0, Deployment, deployed, end, random_clicks, wait_until

PARTITIONS = range(2)
REBUILD = r"stop all workers and run `mindstream rebuild`"


@pytest.fixture
def deployment(
    broker: LocalBroker, milvus_lite: LocalMilvusLite, tmp_path: Path
) -> Iterator[Deployment]:
    with deployed(
        broker.bootstrap_servers, milvus_lite.uri, tmp_path, partitions=len(PARTITIONS)
    ) as one:
        yield one


def windows(deployment: Deployment) -> dict[tuple[int, str], Window]:
    """The last readable window of every user, by partition."""
    kafka = deployment.settings.kafka
    asked = [TopicPartition(kafka.windows_topic, one) for one in PARTITIONS]
    found: dict[tuple[int, str], Window] = {}
    for records in read_to_end(kafka, asked, timeout_s=DEADLINE_S):
        for record in records:
            try:
                user, window = parse_window_record(record)
            except CorruptWindow:
                continue
            found.pop((record.partition, user), None)
            if window is not None:
                found[record.partition, user] = window
    return found


def rebuild(deployment: Deployment, *, dry_run: bool = False) -> Rebuilt:
    index = InterestIndex(deployment.settings.milvus)
    try:
        return rebuild_windows(deployment.settings, index, dry_run=dry_run)
    finally:
        index.close()


def damage(deployment: Deployment, partition: int = 1) -> None:
    """Put a record on the windows topic that is no window."""
    client = producer(deployment.settings.kafka)
    client.send(
        deployment.settings.kafka.windows_topic, key=b"user-0", value=b"\x09", partition=partition
    ).get(timeout=DEADLINE_S)
    client.close()


def delete_all_records(deployment: Deployment, topic: str) -> None:
    kafka = deployment.settings.kafka
    ends = end_offsets(kafka, [TopicPartition(topic, one) for one in PARTITIONS])
    delete_records(kafka, topic, {one.partition: end for one, end in ends.items()})


def recreate_windows_topic(deployment: Deployment) -> None:
    kafka = deployment.settings.kafka
    with admin_client(kafka) as admin:
        admin.delete_topics([kafka.windows_topic])
        wait_until(lambda: kafka.windows_topic not in admin.list_topics(), "the topic to go")
    create_topics(deployment.settings, partitions=len(PARTITIONS), replication=1)


def lose_end(deployment: Deployment) -> None:
    """Have the group remember records that the windows topic does not have."""
    settings = deployment.settings
    extents = read_extents(settings.kafka, PARTITIONS)
    offsets = committed_offsets(settings, len(PARTITIONS))
    set_offsets(
        settings,
        {
            one: (offsets[one], extents[one].reaching(extents[one].end + 1).to_metadata())
            for one in PARTITIONS
        },
    )


def notes(deployment: Deployment) -> dict[int, str]:
    """The metadata of the group's offsets."""
    group = deployment.settings.worker.group_id
    with admin_client(deployment.settings.kafka) as admin:
        found = admin.list_group_offsets({group: None})[group]
    return {partition.partition: offset.metadata for partition, offset in found.items()}


def assert_refused(deployment: Deployment, why: str) -> None:
    with pytest.raises(Misconfigured, match=why):
        run_worker(deployment.settings, threading.Event())


def assert_windows_are_the_fold(deployment: Deployment) -> None:
    assert {user: window for (_, user), window in windows(deployment).items()} == fold(
        deployment.settings, Audit()
    )


def assert_whole(deployment: Deployment) -> None:
    """Windows and rows are those of a plain fold, and a worker serves."""
    assert_windows_are_the_fold(deployment)
    with deployment.worker():
        kafka, release = deployment.settings.kafka, deployment.release.name
        wait_until(lambda: read_releases(kafka).is_filled(release, len(PARTITIONS)), "the fill")
    audit = deployment.audit()
    assert audit.differences == 0, audit.report()
    assert audit.rows > 0


def test_a_corrupt_record_among_windows_is_refused_and_repaired(deployment: Deployment) -> None:
    """Also rows of a user of whom no window is left go; a dry run changes nothing."""
    settings = deployment.settings
    with deployment.worker():
        deployment.produce(random_clicks(300))
        deployment.produce_raw([(b"user-1", None), (b"user-1", b"{no click")], timestamp_ms=T0 + 50)
        deployment.wait_until_consumed()
        damage(deployment)
        deployment.produce(random_clicks(300, seed=1))
        deployment.wait_until_consumed()
    before = read_extents(settings.kafka, PARTITIONS), notes(deployment)
    assert_refused(deployment, rf"windows\[1\] at offset \d+ is no window: .*{REBUILD}")
    nobody = InterestRows(
        user_ids=["nobody"],
        slots=np.array([0]),
        weights=np.ones(1, np.float32),
        exemplars=["item-1"],
        updated_at=np.array([T0]),
        vectors=np.eye(1, 8, dtype=np.float32),
    )
    index = InterestIndex(settings.milvus)
    index.write_interests(deployment.release.name, nobody, [], budget_s=DEADLINE_S)
    index.close()

    dry = rebuild(deployment, dry_run=True)
    assert len(dry.corrupt) == dry.users_deleted == 1
    assert "dry run: nothing was changed" in dry.report()
    assert (read_extents(settings.kafka, PARTITIONS), notes(deployment)) == before

    done = rebuild(deployment)
    ((partition, offset),) = done.corrupt
    assert f"1 corrupt records (such as [{partition}] at {offset})" in done.report()
    assert done.kept == done.users == len(windows(deployment))
    assert (done.rejected, done.users_deleted, done.cut_short) == (1, 1, {})
    with admin_client(settings.kafka) as admin:
        topic = ConfigResource(ConfigResourceType.TOPIC, settings.kafka.windows_topic)
        configs = admin.describe_configs([topic])["topic"][settings.kafka.windows_topic]
    assert {name: config["value"] for name, config in configs.items()}.keys() == {
        "cleanup.policy",
        "max.message.bytes",
        "segment.bytes",
    }
    assert configs["cleanup.policy"]["value"] == "compact"
    assert_whole(deployment)


def test_a_truncated_topic_is_refused_and_rebuilt(deployment: Deployment) -> None:
    """Records deleted, the topic created again, its end lost: the message tells which."""
    kafka = deployment.settings.kafka
    topic = re.escape(kafka.windows_topic)
    losses: dict[str, Callable[[], None]] = {
        rf"{topic}\[\d\] was truncated: it began at offset 0, and begins at \d+\.": (
            lambda: delete_all_records(deployment, kafka.windows_topic)
        ),
        rf"{topic} was deleted and created again: .* {topic}\[\d\] reaching offset \d+": (
            lambda: recreate_windows_topic(deployment)
        ),
        rf"{topic}\[\d\] lost its end: it reached offset \d+, and ends at \d+\.": (
            lambda: lose_end(deployment)
        ),
    }
    deployment.produce(random_clicks(300))
    deployment.consume_all()
    for why, lose in losses.items():
        lose()
        assert_refused(deployment, rf"{why}.*{REBUILD}")
        rebuild(deployment)
        assert_windows_are_the_fold(deployment)
    assert_whole(deployment)


def test_a_topic_created_again_under_a_worker_ends_it(deployment: Deployment) -> None:
    """What it holds in memory is not written behind a log that lost its beginning."""
    worker = deployment.worker_process()
    try:
        deployment.produce(random_clicks(300))
        deployment.wait_until_consumed()
        recreate_windows_topic(deployment)
        deployment.produce(random_clicks(300, seed=1))
        assert worker.wait(DEADLINE_S) != 0
    finally:
        end([worker])
    assert re.search(rf"error: .*windows\[\d\] lost its end.*{REBUILD}", deployment.worker_log())


def test_a_rebuild_is_refused_while_a_worker_runs(deployment: Deployment) -> None:
    """Both before and at the moment at which the group's offsets are marked."""
    deployment.produce(random_clicks(100))
    with deployment.worker():
        deployment.wait_until_consumed()
        before = notes(deployment)
        with pytest.raises(Misconfigured, match=r"has members: .*stop all workers first"):
            rebuild(deployment)
        with pytest.raises(Misconfigured, match="has joined group"):
            set_offsets(deployment.settings, {0: (0, "")})
        assert notes(deployment) == before


def test_a_rebuild_killed_anywhere_loses_nothing_and_can_be_repeated(
    deployment: Deployment,
) -> None:
    """Windows that no click on the topic could bring back are there after every kill."""
    settings = deployment.settings
    deployment.produce(random_clicks(300))
    deployment.consume_all()
    expected = windows(deployment)
    delete_all_records(deployment, settings.kafka.clicks_topic)
    damage(deployment)
    kills = [(step, 2 if step in {"appended", "discarded"} else 1) for step in get_args(Step)]
    for step, nth in kills:
        killed = subprocess.run(
            [sys.executable, "-m", "tests.faults.killed_rebuild", step, str(nth)],
            env={**os.environ, **environment_of(settings)},
            timeout=DEADLINE_S,
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL, (step, nth)
        assert windows(deployment) == expected, (step, nth)
        assert set(notes(deployment).values()) == {REBUILDING}, (step, nth)
    assert_refused(deployment, rf"a rebuild of .* has not ended: {REBUILD} again")
    done = rebuild(deployment)
    assert done.users == len(expected)
    assert sorted(done.cut_short) == list(PARTITIONS)
    assert "windows that were lost and reached further back are shorter now" in done.report()
    assert windows(deployment) == expected
    rows = deployment.index_rows()
    index = InterestIndex(settings.milvus)
    index.forget(["user-0", "user-1", "user-2"], [deployment.release.name], budget_s=DEADLINE_S)
    index.close()
    with deployment.worker():
        wait_until(
            lambda: deployment.index_rows() == rows, "the next worker to encode every window again"
        )


def test_clicks_that_expired_unread_are_told_and_counted(deployment: Deployment) -> None:
    """The worker goes on with what is left."""
    deployment.produce(random_clicks(100))
    deployment.consume_all()
    committed = committed_offsets(deployment.settings, len(PARTITIONS))
    deployment.produce(random_clicks(200, seed=1))
    clicks = deployment.settings.kafka.clicks_topic
    ends = end_offsets(
        deployment.settings.kafka, [TopicPartition(clicks, one) for one in PARTITIONS]
    )
    delete_all_records(deployment, clicks)
    deployment.produce(random_clicks(50, seed=2))
    missing = {
        partition.partition: end - committed.get(partition.partition, end)
        for partition, end in ends.items()
    }
    with structlog.testing.capture_logs() as logs, deployment.worker():
        deployment.wait_until_consumed()
        (started,) = (entry for entry in logs if entry["event"] == "worker.starting")
        with urllib.request.urlopen(f"http://127.0.0.1:{started['http_port']}/metrics") as answer:
            metrics = answer.read().decode()
    told = [entry for entry in logs if entry["event"] == "clicks.expired_unread"]
    assert {entry["partition"]: entry["clicks"] for entry in told} == {
        partition: count for partition, count in missing.items() if count
    }
    assert {entry["log_level"] for entry in told} == {"error"}
    assert f"mindstream_clicks_expired_total {float(sum(missing.values()))}" in metrics


def test_the_note_of_a_commit_is_what_the_topic_holds(deployment: Deployment) -> None:
    """It reaches the last window and nothing more is missing, whatever the batches were."""
    with deployment.worker():
        for part in range(3):
            deployment.produce(random_clicks(200, seed=part))
            deployment.wait_until_consumed()
    found = read_extents(deployment.settings.kafka, PARTITIONS)
    noted = notes(deployment)
    assert sorted(noted) == list(PARTITIONS)
    topic = deployment.settings.kafka.windows_topic
    for one in PARTITIONS:
        check_extent(topic, one, noted[one], found[one])
        # The end of a transaction takes an offset of its own, after the last window.
        without_last = found[one].reaching(found[one].end - 2)
        with pytest.raises(Misconfigured, match="lost its end"):
            check_extent(topic, one, noted[one], without_last)


def test_what_was_committed_without_a_note_is_taken_and_noted_from_then_on(
    deployment: Deployment,
) -> None:
    """As after an older version; the takeover notes it, and a batch of rejected records, too."""
    set_offsets(deployment.settings, dict.fromkeys(PARTITIONS, (0, "")))
    deployment.produce_raw([(None, b"no key")])  # on partition 0
    deployment.consume_all()
    found = read_extents(deployment.settings.kafka, PARTITIONS)
    assert notes(deployment) == {one: found[one].to_metadata() for one in PARTITIONS}
