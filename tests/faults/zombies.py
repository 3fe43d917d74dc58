"""Workers that are stopped until the group has given them up, and then wake."""

import signal
import time
from collections.abc import Callable

from encoder.click import Click
from encoder.interest_index import InterestIndex
from mindstream.erasure import write_tombstone
from mindstream.exit_codes import EXIT_MISCONFIGURED, EXIT_UNAVAILABLE
from tests.deployment import DEADLINE_S, ITEMS, T0, Deployment, wait_until
from tests.faults.faulty_worker import NO_LEASE
from tests.faults.ground import SESSION_S, Fault, Ground, Outcome
from tests.faults.worker import Worker

_USERS = 40


def _clicks(deployment: Deployment, turn: int) -> None:
    """One click of every user, newer with every turn, on an item of its own."""
    deployment.produce(
        Click(f"user-{user}", f"item-{1 + (user * 7 + turn * 11) % ITEMS}", T0 + turn)
        for user in range(_USERS)
    )


def _given_up(
    ground: Ground, deployment: Deployment, *fate: str, turn: int = 0
) -> tuple[Worker, Worker]:
    """A worker stopped in the midst of its first batch, and the one that has its partitions now.

    The second has applied the first one's batch, and newer clicks of the same users.
    """
    ground.consume(deployment)
    _clicks(deployment, turn + 1)
    sleeper = ground.worker(deployment, *fate)
    sleeper.wait_stopped()
    owner = ground.worker(deployment)
    owner.wait_for("partitions.taken")
    _clicks(deployment, turn + 2)
    deployment.wait_until_consumed()
    return sleeper, owner


def _wakes(point: str) -> Callable[[Ground], Outcome]:
    """Neither commits nor overwrites newer rows."""

    def run(ground: Ground) -> Outcome:
        with ground.deployment() as deployment:
            _clicks(deployment, 0)
            sleeper, owner = _given_up(ground, deployment, point, "1", "stop")
            sleeper.signal(signal.SIGCONT)
            sleeper.wait_for("batch.abandoned")
            found = deployment.audit()
            assert found.differences == 0, found.report()
            _end(sleeper, owner)
            return ground.close(deployment, 1)

    return run


def _wakes_between_look_and_write(ground: Ground) -> Outcome:
    """The one place that no lease covers: the new owners write over what comes late."""
    with ground.deployment() as deployment:
        _clicks(deployment, 0)
        sleeper, owner = _given_up(ground, deployment, "leased", "1", "stop")
        sleeper.signal(signal.SIGCONT)
        woken_at = time.monotonic()
        sleeper.wait_for("batch.abandoned")
        stale = deployment.audit().wrong_rows
        assert stale, "the write did not come late: nothing was tried"
        wait_until(lambda: deployment.audit().differences == 0, "stale rows to be repaired")
        stale_s = time.monotonic() - woken_at
        _end(sleeper, owner)
        note = f"{stale} rows stale for {stale_s:.1f} s; session {SESSION_S:g} s"
        return ground.close(deployment, 1, note)


def _wakes_after_an_erasure(ground: Ground) -> Outcome:
    """Rows that come late for a user who was erased meanwhile, in the release of before."""
    with ground.deployment() as deployment:
        first = deployment.release.name
        _clicks(deployment, 0)
        ground.consume(deployment)
        _clicks(deployment, 1)
        sleeper = ground.worker(deployment, "leased", "1", "stop")
        sleeper.wait_stopped()
        deployment.publish_next(seed=1)
        owner = ground.worker(deployment)
        owner.wait_for("partitions.taken")
        write_tombstone(deployment.settings, "user-0", partition=None, stalled_after_s=DEADLINE_S)
        assert _rows(deployment, "user-0") == 0
        sleeper.signal(signal.SIGCONT)
        sleeper.wait_for("batch.abandoned")
        late = _rows(deployment, "user-0")
        assert late, "the write did not come late: nothing was tried"
        wait_until(lambda: _rows(deployment, "user-0") == 0, "the late rows to go")
        _end(sleeper, owner)
        outcome = ground.close(deployment, 1, f"{late} rows of an erased user came late and went")
        deployment.drop_releases(but=first)
        return outcome


def _rows(deployment: Deployment, user: str) -> int:
    """Of a user in all announced releases' collections."""
    index = InterestIndex(deployment.settings.milvus)
    rows = index.rows_by_collection(user)
    index.close()
    name = deployment.settings.worker.group_id  # the releases' names begin with it
    return sum(len(found) for collection, found in rows.items() if name in collection)


def _twin(ground: Ground) -> Outcome:
    """A static worker that was replaced by one of the same name: it ends, and says why."""
    with ground.deployment() as deployment:
        _clicks(deployment, 0)
        ground.consume(deployment)
        _clicks(deployment, 1)
        sleeper = ground.worker(deployment, "encoded", "1", "stop", instance="w")
        sleeper.wait_stopped()
        owner = ground.worker(deployment, instance="w")
        owner.wait_for("partitions.taken")
        _clicks(deployment, 2)
        deployment.wait_until_consumed()
        time.sleep(SESSION_S)  # so that its lease is over when it wakes
        sleeper.signal(signal.SIGCONT)
        assert sleeper.wait_ended() == EXIT_MISCONFIGURED, sleeper.log()
        assert "MINDSTREAM_WORKER__INSTANCE_ID" in sleeper.log(), sleeper.log()
        _end(owner)
        return ground.close(deployment, 1, f"exit code {EXIT_MISCONFIGURED}")


def _in_a_commit(ground: Ground) -> Outcome:
    """Stopped within a transaction until the broker has ended that."""
    with ground.deployment(transaction_timeout_s=SESSION_S) as deployment:
        for turn, point in enumerate(("sent", "offsets")):
            _clicks(deployment, 3 * turn)
            sleeper, owner = _given_up(ground, deployment, point, "1", "stop", turn=3 * turn)
            time.sleep(SESSION_S)  # until the transaction's time is over as well
            sleeper.signal(signal.SIGCONT)
            assert sleeper.wait_ended() == EXIT_UNAVAILABLE, sleeper.log()
            _end(owner)
        return ground.close(deployment, 2, f"exit code {EXIT_UNAVAILABLE}")


def _wakes_without_a_lease(ground: Ground) -> Outcome:
    """What the lease is for: without it, stale rows stay until the user's next click."""
    with ground.deployment() as deployment:
        _clicks(deployment, 0)
        sleeper, owner = _given_up(ground, deployment, "encoded", "1", "stop", NO_LEASE)
        owner.wait_for("partition.settled")
        sleeper.signal(signal.SIGCONT)
        sleeper.wait_for("batch.abandoned")
        stale = deployment.audit().wrong_rows
        assert stale, "the write did not come late: nothing was tried"
        time.sleep(2 * SESSION_S)  # nothing is to happen: there is no event to wait for
        still = deployment.audit().wrong_rows
        _clicks(deployment, 3)
        deployment.wait_until_consumed()
        _end(sleeper, owner)
        note = f"{stale} rows stale, {still} still after {2 * SESSION_S:g} s, until the next clicks"
        return ground.close(deployment, 1, note)


def _end(*workers: Worker) -> None:
    for worker in workers:
        worker.end()


FAULTS = [
    *(
        Fault(f"zombie stopped when {point}", _wakes(point))
        for point in ("polled", "merged", "encoded", "written")
    ),
    Fault("zombie stopped between look and write", _wakes_between_look_and_write),
    Fault("zombie with rows of an erased user", _wakes_after_an_erasure),
    Fault("zombie stopped within a commit", _in_a_commit),
    Fault("zombie with a twin of its name", _twin),
]
EXPERIMENTS = [Fault("zombie without a lease (experiment)", _wakes_without_a_lease)]
