"""Items announced, changed and withdrawn while workers die, partitions move and the store is away.

Clicks go on meanwhile, also on items that nobody has announced yet. Most users click no more, so
that nothing but what becomes of their items has their rows written again.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import structlog
from kafka import TopicPartition

from deploy.local_milvus import LocalMilvusLite
from encoder.click import Click
from encoder.interest_index import InterestIndex
from encoder.item_topic import announce_items
from encoder.kafka_client import end_offsets
from encoder.release_topic import ReleaseFollower
from mindstream.audit import Audit
from tests.deployment import ITEMS, T0, Deployment, wait_until
from tests.faults.announcements import CATALOGUE, Announcements
from tests.faults.faulty_worker import ITEM_STEPS
from tests.faults.ground import SESSION_S, Fault, Ground, Outcome
from tests.faults.rebalances import FEWEST, change
from tests.faults.traffic import Traffic
from tests.small_items import release_with_fields

_PARTITIONS = 4
_QUIET_USERS = 400
_QUIET_CLICKS = 5  # of a window of 8


@contextmanager
def _deployment(ground: Ground, milvus_uri: str = "") -> Iterator[Deployment]:
    """With users who clicked a while ago, on items that are known and on others."""
    with ground.deployment(
        partitions=_PARTITIONS,
        milvus_uri=milvus_uri,
        release=release_with_fields,
        transaction_timeout_s=SESSION_S,  # of one that was killed; its successor waits for it
    ) as deployment:
        rng = random.Random(ground.seed())  # noqa: S311  nothing secret
        deployment.produce(
            Click(f"quiet-{user}", f"item-{rng.randint(1, CATALOGUE)}", T0 + at)
            for at in range(_QUIET_CLICKS)
            for user in range(_QUIET_USERS)
        )
        ground.consume(deployment)
        yield deployment


def _killed(ground: Ground) -> Outcome:
    """At every step of what is done about items, and at random moments."""
    injected = 0
    with _deployment(ground) as deployment:
        with (
            Traffic(deployment, ground.seed(), per_s=100),
            Announcements(deployment, ground.seed()) as said,
        ):
            for _ in range(ground.times(1, 5)):
                for point in (*ITEM_STEPS, "written", "sent", "restored"):
                    # A report comes soon, and then every 10 s; windows are restored once.
                    once = point in ("item report", "item reported", "restored")
                    nth = 1 if once else ground.rng.randint(1, 6)
                    ground.worker(deployment, point, str(nth), instance="w").wait_killed()
                    injected += 1
                worker = ground.worker(deployment, instance="w")
                worker.wait_for("partitions.taken")
                time.sleep(ground.rng.random() * 2)  # the draw
                worker.kill()
                injected += 1
        return _close(ground, deployment, injected, said)


def _moved(ground: Ground) -> Outcome:
    """Two to four dynamic members: one joins, leaves, dies or sleeps a little at a time.

    In between another release is published, which the partitions are filled for while they move.
    """
    changes = ground.times(5, 30)
    with _deployment(ground) as deployment:
        first = deployment.release
        with (
            Traffic(deployment, ground.seed(), per_s=100),
            Announcements(deployment, ground.seed()) as said,
        ):
            workers = [ground.worker(deployment) for _ in range(FEWEST)]
            for worker in workers:
                worker.wait_for("partitions.taken")
            for number in range(changes):
                if number == changes // 2:
                    with structlog.testing.capture_logs():  # as in `_audit`
                        deployment.publish_next(seed=1)
                change(ground, deployment, workers)
                time.sleep(ground.rng.random())  # how far the group is by then is the draw
        for worker in workers:
            worker.kill()
        outcome = _close(ground, deployment, changes, said)
        deployment.release = first
        other = _audit(deployment)
        assert other.differences == 0, f"the release before: {other.report()}"
        deployment.drop_releases(but=first.name)
        return outcome


def _store_killed(ground: Ground) -> Outcome:
    """The store is gone for a while, time and again, with a worker that goes on."""
    times = ground.times(2, 8)
    lite = ground.stack.enter_context(LocalMilvusLite())
    with _deployment(ground, lite.uri) as deployment:
        with (
            Traffic(deployment, ground.seed(), per_s=100),
            Announcements(deployment, ground.seed()) as said,
        ):
            worker = ground.worker(deployment, instance="w")
            worker.wait_for("partitions.taken")
            for _ in range(times):
                time.sleep(ground.rng.random())  # the draw, and how long it is away below
                lite.kill()
                time.sleep(ground.rng.random() * 2)
                lite.start()
                deployment.wait_until_consumed()
        worker.check_running()
        worker.kill()
        return _close(ground, deployment, times, said)


def _close(ground: Ground, deployment: Deployment, injected: int, said: Announcements) -> Outcome:
    """Compare as soon as workers report that all is done, so that no report may say too much."""
    worker = ground.worker(deployment, instance="w")
    worker.wait_for("partitions.taken")
    deployment.wait_until_consumed()
    deployment.wait_until_filled()
    with _reported(deployment) as all_is_reported:
        wait_until(all_is_reported, "workers to report that items are done with")
    audit = _audit(deployment)
    worker.end()
    return Outcome(injected, audit, f"{said.said} records of items")


def _audit(deployment: Deployment) -> Audit:
    with structlog.testing.capture_logs():  # it tells every record that is no item
        audit = deployment.audit()
    audit.wrong_items += _wrongly_told(deployment)
    return audit


@contextmanager
def _reported(deployment: Deployment) -> Iterator[Callable[[], bool]]:
    kafka = deployment.settings.kafka
    topic = [TopicPartition(kafka.items_topic, one) for one in range(deployment.partitions)]
    ends = {one.partition: end for one, end in end_offsets(kafka, topic).items()}
    follower = ReleaseFollower(kafka)

    def all_is_reported() -> bool:
        known = follower.poll()
        return all(
            known.items.get((one.release, users), {}).get(partition, 0) >= end
            for one in known.announced
            for users in range(deployment.partitions)
            for partition, end in ends.items()
        )

    try:
        yield all_is_reported
    finally:
        follower.close()


def _wrongly_told(deployment: Deployment) -> list[str]:
    """Items of which readers that hold them in memory learn other than what the store searches."""
    index, release = InterestIndex(deployment.settings.milvus), deployment.release.name
    try:
        searched = {item_id: vector.tobytes() for item_id, vector in index.all_items(release)}
        changes = index.items.changes_since(release, {}, "Strong")
        assert changes is not None, "nothing was changed"
    finally:
        index.close()
    told = {
        item_id: None if gone else vector.tobytes()
        for item_id, vector, gone in zip(
            changes.item_ids, changes.vectors, changes.withdrawn.tolist(), strict=True
        )
    }
    return [item_id for item_id, vector in told.items() if searched.get(item_id) != vector]


def _zombie(point: str) -> Callable[[Ground], Outcome]:
    """What a worker writes of an item too late is written over, though nobody clicks any more.

    It is stopped between looking at its lease and writing: of what is retrieved, or of users.
    """

    def run(ground: Ground) -> Outcome:
        # With a small budget, clicks are soon too old for their users to be written again anyway.
        with ground.deployment(release=release_with_fields, step_budget_s=4.0) as deployment:
            deployment.produce(
                Click(f"quiet-{user}", f"item-{ITEMS + at}", T0 + at)
                for user in range(40)
                for at in (0, 1)
            )
            ground.consume(deployment)
            time.sleep(2 * SESSION_S + 4.0)  # until they are
            sleeper = ground.worker(deployment, point, "1", "stop")
            sleeper.wait_for("partitions.taken")
            _say(deployment, {"title": "red"})
            sleeper.wait_stopped()
            owner = ground.worker(deployment)
            owner.wait_for("partitions.taken")
            _say(deployment, {"title": "blue cup"})
            wait_until(lambda: _differences(deployment) == 0, "the newer item")
            sleeper.signal(signal.SIGCONT)
            woken_at = time.monotonic()
            wait_until(lambda: _differences(deployment) > 0, "the write that comes late")
            stale = _differences(deployment)
            wait_until(lambda: _differences(deployment) == 0, "what is stale to be repaired")
            stale_s = time.monotonic() - woken_at
            sleeper.kill()  # its budget was spent in its sleep: it may have ended by itself
            owner.end()
            note = f"{stale} stale for {stale_s:.1f} s; session {SESSION_S:g} s"
            return ground.close(deployment, 1, note)

    return run


def _say(deployment: Deployment, fields: Mapping[str, str]) -> None:
    announced = [(f"item-{ITEMS + 1}", json.dumps(fields).encode())]
    announce_items(deployment.settings.kafka, announced)


def _differences(deployment: Deployment) -> int:
    return deployment.audit().differences


FAULTS = [
    Fault("items while workers are killed", _killed),
    Fault("items while partitions move", _moved),
    Fault("items while Milvus Lite is killed", _store_killed),
    Fault("zombie with an item", _zombie("item leased")),
    Fault("zombie with an item's users", _zombie("users leased")),
]
