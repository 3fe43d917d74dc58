"""Workers that are stopped until the group has given them up, and then wake."""

import signal
import time
from collections.abc import Callable

from encoder.click import Click
from tests.deployment import ITEMS, T0, Deployment, wait_until
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


def _given_up(ground: Ground, deployment: Deployment, *fate: str) -> tuple[Worker, Worker]:
    """A worker stopped in the midst of its first batch, and the one that has its partitions now.

    The second has applied the first one's batch, and newer clicks of the same users.
    """
    ground.consume(deployment)
    _clicks(deployment, 1)
    sleeper = ground.worker(deployment, *fate)
    sleeper.wait_stopped()
    owner = ground.worker(deployment)
    owner.wait_for("partitions.taken")
    _clicks(deployment, 2)
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
]
EXPERIMENTS = [Fault("zombie without a lease (experiment)", _wakes_without_a_lease)]
