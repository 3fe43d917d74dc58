"""The update service on a real broker and a real store: clicks in, interests out."""

import random
import threading

import pytest
import structlog
from kafka import KafkaAdminClient
from kafka.admin import MemberToRemove
from kafka.errors import CommitFailedError, FencedInstanceIdError, KafkaError

from consumers.click_topic import ClickTopic
from consumers.transactions import Outdated
from consumers.update_loop import Step
from consumers.worker import run_worker
from encoder.click import Click
from encoder.errors import Misconfigured
from encoder.interest_index import InterestIndex
from encoder.kafka_client import admin_client, producer
from encoder.records import Record
from encoder.release_topic import read_releases
from encoder.topics import check_topics, create_topics
from encoder.window import Window, to_wire
from encoder.windows_topic import read_windows
from lookup import Lookup, UnknownItem
from mindstream.group import committed_offsets
from tests.deployment import DEADLINE_S, T0, Deployment, end, random_clicks, wait_until


def assert_store_is_the_fold(deployment: Deployment) -> None:
    audit = deployment.audit()
    assert audit.differences == 0, audit.report()
    assert audit.rows > 0


def test_clicks_become_the_interests_of_a_plain_fold(deployment: Deployment) -> None:
    """Late, repeated, simultaneous and unknown clicks; every row to the bit, and no row more."""
    deployment.produce(random_clicks(1500))
    deployment.consume_all()
    assert_store_is_the_fold(deployment)


def test_rejected_records_are_set_aside_with_their_origin(deployment: Deployment) -> None:
    """Original bytes, source coordinates and reason; the clicks around them are applied."""
    deployment.produce_raw(
        [
            Click("u", "item-1", T0).to_record(),
            (b"u", b"{not json"),
            (None, b'{"user_id":"u","item_id":"item-1","timestamp":1700000000000}'),
            (b"other", b'{"user_id":"u","item_id":"item-1","timestamp":1700000000000}'),
            (b"\xff", b"\xfe\xfd"),
            (b"\xff", None),
            Click("u", "item-2", T0 + 1).to_record(),
        ]
    )
    deployment.consume_all()
    letters = deployment.dead_letters()
    assert sorted(str(letter["reason"]) for letter in letters) == [
        "key_mismatch",
        "key_not_utf8",
        "key_not_utf8",
        "no_key",
        "not_json",
    ]
    (malformed,) = (letter for letter in letters if letter["reason"] == "not_json")
    assert malformed["value"] == b"{not json"
    assert malformed["key"] == b"u"
    assert malformed["topic"] == deployment.settings.kafka.clicks_topic
    assert int(str(malformed["offset"])) >= 0
    assert "JSON" in str(malformed["detail"])
    assert_store_is_the_fold(deployment)


def test_a_restarted_worker_goes_on_from_its_windows(
    deployment: Deployment,
) -> None:
    """Windows come back from their topic; what was filled is not filled again."""
    clicks = random_clicks(900)
    deployment.produce(clicks[:500])
    deployment.consume_all()
    deployment.produce(clicks[500:])
    with structlog.testing.capture_logs() as logs:
        deployment.consume_all()
    (taken,) = (entry for entry in logs if entry["event"] == "partitions.taken")
    assert taken["windows"] > 0
    assert taken["filled_users"] == 0
    assert_store_is_the_fold(deployment)


def test_a_tombstone_forgets_and_later_clicks_start_afresh(deployment: Deployment) -> None:
    """Window and rows gone; old clicks ignored when replayed; new ones count."""
    old = [Click("u", f"item-{n}", T0 + n) for n in range(1, 6)]
    deployment.produce([*old, Click("v", "item-1", T0)])
    deployment.consume_all()
    deployment.produce_raw([(b"u", None)], timestamp_ms=T0 + 1000)
    deployment.consume_all()
    index = InterestIndex(deployment.settings.milvus)
    release = deployment.release.name
    assert set(index.interests(release, ["u", "v"], 3, "Strong")) == {"v"}
    deployment.produce(old)
    deployment.consume_all()
    assert set(index.interests(release, ["u", "v"], 3, "Strong")) == {"v"}
    deployment.produce([Click("u", "item-9", T0 + 1001)])
    deployment.consume_all()
    (fresh,) = index.interests(release, ["u"], 3, "Strong")["u"]
    assert fresh.exemplar == "item-9"
    assert fresh.updated_at == T0 + 1001
    index.close()
    assert_store_is_the_fold(deployment)


def test_rows_that_a_crashed_predecessor_wrote_do_not_stay(deployment: Deployment) -> None:
    """Written but not committed, then forgotten before they were seen again: no row is left."""

    def crash(step: Step) -> None:
        if step == "written":
            raise RuntimeError("crash")

    deployment.produce([Click("u", f"item-{n}", T0 + n) for n in range(1, 9)])
    with pytest.raises(RuntimeError, match="crash"), deployment.worker(crash):
        wait_until(lambda: deployment.index_rows() == 3, "the rows to be written")
    deployment.produce_raw([(b"u", None)], timestamp_ms=T0 + 1000)
    deployment.consume_all()
    assert deployment.index_rows() == 0
    assert deployment.audit().differences == 0


def test_look_ups_answer_from_the_release_in_use(deployment: Deployment) -> None:
    """By key, nearest items, nearest users; unknown ones are told apart from empty ones."""
    deployment.produce([Click(f"u{n}", f"item-{n}", T0) for n in range(2, 40)])
    deployment.produce([Click("u", "item-1", T0), Click("w", "item-1", T0)])
    deployment.consume_all()
    with Lookup(deployment.settings.milvus, consistency="Strong") as client:
        found = client.interests("u")
        assert found.release == deployment.release.name
        assert [interest.exemplar for interest in found.interests] == ["item-1"]
        candidates = client.candidates("u", limit=5)
        assert len({hit.id for hit in candidates.items}) == 5
        scores = [hit.score for hit in candidates.items]
        assert scores == sorted(scores, reverse=True)
        assert {hit.id for hit in client.audience("item-1", limit=2).users} == {"u", "w"}
        assert client.interests("nobody").interests == ()
        assert client.candidates("nobody").items == ()
        with pytest.raises(UnknownItem, match="item-0"):
            client.audience("item-0")


def test_workers_that_join_and_leave_share_the_work(deployment: Deployment) -> None:
    """Partitions move under load, with their windows; nothing is lost or left behind."""
    workers = [deployment.worker_process(instance="one")]
    try:
        deployment.produce(random_clicks(600))
        deployment.wait_until_consumed()
        workers.append(deployment.worker_process(instance="two"))
        for part in range(20):  # under load until the second has taken its share
            deployment.produce(random_clicks(200, seed=part))
            if deployment.worker_log().count("partitions.taken") > 1:
                break
        wait_until(lambda: deployment.worker_log().count("partitions.taken") > 1, "a rebalance")
        deployment.produce(random_clicks(600, seed=99))
        deployment.wait_until_consumed()
    finally:
        codes = end(workers)
    assert codes == [0, 0], deployment.worker_log()
    assert_store_is_the_fold(deployment)


def test_a_batch_that_the_group_no_longer_accepts_is_abandoned_and_repeated(
    deployment: Deployment,
) -> None:
    """A worker thrown out between write and commit does not commit, rejoins, and goes on."""
    steps: list[Step] = []

    def throw_out(step: Step) -> None:
        steps.append(step)
        if steps.count("written") == 1 and step == "written":
            with admin_client(deployment.settings.kafka) as admin:
                remove_members(admin, deployment.settings.worker.group_id)

    deployment.produce(random_clicks(300))
    with deployment.worker(throw_out):
        deployment.wait_until_consumed()
    batch: list[Step] = ["polled", "merged", "encoded", "written"]
    assert steps[:8] == [*batch, *batch], "the first batch is not committed, but repeated"
    assert steps[8] == "committed"
    assert_store_is_the_fold(deployment)


def test_a_worker_that_has_forgotten_its_membership_cannot_commit(deployment: Deployment) -> None:
    """A broker takes a commit without a member's name from anybody; so we must not send it.

    kafka-python forgets the membership as soon as a heartbeat tells that it has ended.
    """
    deployment.produce([Click("u", "item-1", T0)])
    topic = ClickTopic(deployment.settings)
    try:
        records: list[Record] = []
        while not records:
            records, _ = topic.poll(1.0)
        with admin_client(deployment.settings.kafka) as admin:
            remove_members(admin, deployment.settings.worker.group_id)
        wait_until(lambda: topic._consumer.group_metadata().generation_id < 0, "a heartbeat")
        (record,) = records
        window = to_wire(Window(((T0, "item-1"),)))
        with pytest.raises(Outdated):
            topic.commit(
                {record.partition: [("u", window)]}, [], {record.partition: 1}, topic.membership
            )
        assert not any(topic.restore(range(4)))
    finally:
        topic.close(timeout_s=5)


def test_a_worker_that_was_given_up_changes_no_report(deployment: Deployment) -> None:
    """Neither takes one back that the next owner has written, nor says of items what that knows."""
    deployment.produce([Click("u", "item-1", T0)])
    settings, release = deployment.settings, deployment.release.name
    topic = ClickTopic(settings)
    try:
        wait_until(lambda: topic.poll(0.2)[0], "a click")
        topic.report_filled(release, {0: 0, 1: 0})
        topic.report_items({(release, 0): {0: 5}}, {0: 0})
        topic.take_back([(release, 1)], {1: 0})
        before = read_releases(settings.kafka)
        assert before.filled == {(release, 0)}
        assert before.items == {(release, 0): {0: 5}}
        with admin_client(settings.kafka) as admin:
            remove_members(admin, settings.worker.group_id)
        wait_until(lambda: topic._consumer.group_metadata().generation_id < 0, "a heartbeat")
        with pytest.raises(Outdated):
            topic.take_back([(release, 0)], {0: 0})
        with pytest.raises(Outdated):
            topic.report_items({(release, 0): {0: 9}}, {0: 0})
        assert read_releases(settings.kafka) == before
    finally:
        topic.close(timeout_s=5)


def test_a_refused_commit_leaves_nothing_to_the_next_one(deployment: Deployment) -> None:
    """Its batch was rolled back: its offsets must not come along with another batch's.

    kafka-python keeps the offsets that a broker refused, and sends them again.
    """
    deployment.produce([Click("u", "item-1", T0)])
    settings = deployment.settings
    topic = ClickTopic(settings)
    try:
        wait_until(lambda: topic.poll(0.2)[0], "a click")
        refused = topic.membership
        with admin_client(settings.kafka) as admin:
            remove_members(admin, settings.worker.group_id)
        wait_until(lambda: topic._consumer.group_metadata().generation_id < 0, "a heartbeat")
        with pytest.raises(Outdated):
            topic.commit({}, [], {0: 5, 1: 5, 2: 5}, refused)
        wait_until(lambda: topic.poll(0.2)[1].gained, "the group to take it in again")
        topic.commit({}, [], {0: 1}, topic.membership)
        assert committed_offsets(settings, 4) == {0: 1}
    finally:
        topic.close(timeout_s=5)


@pytest.mark.parametrize("error", [CommitFailedError, FencedInstanceIdError])
def test_a_member_whose_commit_was_refused_by_mistake_goes_on(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, error: type[KafkaError]
) -> None:
    """The group keeps it as it was: there is nothing to join anew, and clicks must come again."""
    deployment.produce([Click("u", "item-1", T0)])
    topic = ClickTopic(deployment.settings)
    try:
        polled: list[Record] = []
        wait_until(lambda: bool(polled.extend(topic.poll(0.2)[0]) or polled), "a click")
        offsets = {polled[0].partition: 1}

        def refuse(offsets: object, membership: object) -> None:
            raise error

        with monkeypatch.context() as coordinator:
            coordinator.setattr(
                topic._transactions._producer, "send_offsets_to_transaction", refuse
            )
            with pytest.raises(Outdated):
                topic.commit({}, [], offsets, topic.membership)
        member = topic.membership
        topic.rewind(polled)
        wait_until(lambda: topic.poll(0.2)[0] == polled, "the click again")
        assert topic.membership == member
        topic.commit({}, [], offsets, topic.membership)
        assert committed_offsets(deployment.settings, 4) == offsets
    finally:
        topic.close(timeout_s=5)


def test_what_was_held_back_comes_in_batches_like_any_other(deployment: Deployment) -> None:
    """A takeover's polls may hold back more than a batch; how much may be in flight is bounded."""
    deployment.produce(random_clicks(200))
    topic = ClickTopic(deployment.settings)
    try:
        held: list[Record] = []
        while len(held) < 100:
            held += topic.poll(0.2, 60)[0]
        topic.hold_back(held)
        found: list[Record] = []
        while len(found) < 200:
            records = topic.poll(0.2, 7)[0]
            assert len(records) <= 7
            found += records
        for partition in range(4):
            offsets = [record.offset for record in found if record.partition == partition]
            assert offsets == list(range(len(offsets)))
    finally:
        topic.close(timeout_s=5)


def test_a_takeover_that_loses_its_partitions_is_abandoned_and_repeated(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long restore or fill goes on being a member, notices the loss, and starts again."""
    deployment.produce(random_clicks(300))
    deployment.consume_all()
    deployment.release = deployment.publish(f"{deployment.release.name}_b", seed=7)
    deployment.produce(random_clicks(300, seed=5))
    keep_membership, calls = ClickTopic.keep_membership, 0

    def lose_once(topic: ClickTopic) -> set[int]:
        nonlocal calls
        calls += 1
        if calls == 1:
            with admin_client(deployment.settings.kafka) as admin:
                remove_members(admin, deployment.settings.worker.group_id)
            lost: set[int] = set()
            while not lost:
                lost = keep_membership(topic)
            return lost
        return keep_membership(topic)

    monkeypatch.setattr(ClickTopic, "keep_membership", lose_once)
    deployment.consume_all()
    assert calls > 1
    assert_store_is_the_fold(deployment)
    index = InterestIndex(deployment.settings.milvus)
    index.drop_release(deployment.release.name)
    index.close()


def test_clicks_held_back_go_with_their_partition(deployment: Deployment) -> None:
    """What was polled before a partition was lost is not processed after it, nor sought again."""
    deployment.produce(random_clicks(100))
    first = ClickTopic(deployment.settings)
    second: list[ClickTopic] = []
    try:
        records: list[Record] = []
        while {record.partition for record in records} < set(range(4)):
            polled, _ = first.poll(1.0)
            records += polled
        first.hold_back(records)
        second.append(ClickTopic(deployment.settings))
        lost: set[int] = set()
        while not lost:
            second[0].poll(0.1)
            lost = first.keep_membership()
        held, change = first.poll(0.0)
        assert change.lost == lost
        assert {record.partition for record in held} == set(range(4)) - lost
    finally:
        for topic in (first, *second):
            topic.close(timeout_s=5)


def test_one_user_on_two_partitions_stops_nobody(deployment: Deployment) -> None:
    """Producers with two partitioners break the contract; the worker goes on, and says so."""
    client = producer(deployment.settings.kafka)
    for partition in range(4):
        key, value = Click("u", f"item-{1 + partition}", T0 + partition).to_record()
        client.send(
            deployment.settings.kafka.clicks_topic, key=key, value=value, partition=partition
        )
    client.flush()
    client.close()
    with structlog.testing.capture_logs() as logs:
        deployment.consume_all()
    assert {"user.on_two_partitions"} <= {entry["event"] for entry in logs}
    index = InterestIndex(deployment.settings.milvus)
    (interest,) = index.interests(deployment.release.name, ["u"], 3, "Strong")["u"]
    assert interest.updated_at == T0 + 3, "the newest click's window"
    index.close()


def test_the_largest_click_record_fits_the_dead_letter_topic(deployment: Deployment) -> None:
    """A value of a megabyte is set aside whole, with its headers."""
    client = producer(deployment.settings.kafka)
    limit = 1_048_588 - 200  # a topic's default for a batch, less what a batch adds
    value = random.Random(0).randbytes(limit)  # noqa: S311  that no compression makes smaller
    client.send(deployment.settings.kafka.clicks_topic, key=b"u", value=value, partition=0).get(
        timeout=30
    )
    client.close()
    deployment.consume_all()
    (letter,) = deployment.dead_letters()
    assert letter["value"] == value
    assert letter["reason"] == "not_json"


def remove_members(admin: KafkaAdminClient, group: str) -> None:
    (described,) = admin.describe_groups([group]).values()
    members = [MemberToRemove(member_id=member["member_id"]) for member in described["members"]]
    admin.remove_group_members(group, members)


def test_a_damaged_window_stops_the_start_and_names_its_offset(deployment: Deployment) -> None:
    """A worker does not go on from a state that it cannot read."""
    client = producer(deployment.settings.kafka)
    client.send(deployment.settings.kafka.windows_topic, key=b"u", value=b"\x09x", partition=2)
    client.close()
    with pytest.raises(Misconfigured, match=r"windows\[2\] at offset 0 is no window"):
        run_worker(deployment.settings, threading.Event())


def test_erasure_times_are_dropped_once_no_old_click_can_return(deployment: Deployment) -> None:
    """Afterwards nothing is left of the user, not even on the windows topic."""

    def windows() -> dict[str, Window | None]:
        kafka = deployment.settings.kafka
        return {user: one for _, user, one in read_windows(kafka, range(4), timeout_s=DEADLINE_S)}

    deployment.produce([Click("v", "item-1", T0 + 1)])
    deployment.produce_raw([(b"u", None), (b"v", None)], timestamp_ms=T0)
    deployment.consume_all()
    kept = Window(((T0 + 1, "item-1"),), T0)
    assert windows() == {"u": Window((), T0), "v": kept}

    def retain(**retention: float) -> None:
        worker = deployment.settings.worker.model_copy(update=retention)
        deployment.settings = deployment.settings.model_copy(update={"worker": worker})

    retain(click_retention_s=1.0, dead_letter_retention_s=100 * 365 * 86_400.0)
    deployment.produce([Click("v", "item-1", T0)])
    deployment.consume_all()
    assert windows() == {"u": Window((), T0), "v": kept}, "a dead letter may still be put back"
    retain(dead_letter_retention_s=1.0)
    with deployment.worker():
        wait_until(lambda: windows() == {"u": None, "v": Window(kept.clicks)}, "expiry")


def test_topics_are_created_once_and_checked(deployment: Deployment) -> None:
    """Missing topics and unequal partitions are told, with the way out."""
    settings = deployment.settings
    assert create_topics(settings, partitions=4, replication=1) == []
    assert check_topics(settings.kafka) == 4
    missing = settings.kafka.model_copy(update={"windows_topic": "nowhere"})
    with pytest.raises(Misconfigured, match=r"no topic nowhere; create .*topics create"):
        check_topics(missing)
    unequal = settings.kafka.model_copy(update={"windows_topic": settings.kafka.releases_topic})
    unequal = unequal.model_copy(update={"releases_topic": settings.kafka.dead_letters_topic})
    with pytest.raises(Misconfigured, match=r"has 4 partitions and .* has 1"):
        check_topics(unequal)
