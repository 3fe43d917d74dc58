"""Workers that join, leave, die and sleep under load, on eight partitions."""

import signal
import time

from tests.deployment import Deployment
from tests.faults.ground import Fault, Ground, Outcome
from tests.faults.traffic import Traffic
from tests.faults.worker import Worker

_PARTITIONS = 8
FEWEST, _MOST = 2, 4


def _join_and_leave(ground: Ground) -> Outcome:
    """Two to four dynamic members: one joins, leaves, dies or sleeps a little at a time."""
    changes = ground.times(6, 40)
    with ground.deployment(partitions=_PARTITIONS) as deployment:
        with Traffic(deployment, ground.seed()):
            workers = [ground.worker(deployment) for _ in range(FEWEST)]
            for worker in workers:
                worker.wait_for("partitions.taken")
            for _ in range(changes):
                change(ground, deployment, workers)
                time.sleep(ground.rng.random())  # how far the group is by then is the draw
            deployment.wait_until_consumed()
            for worker in workers:
                worker.end()
        return ground.close(deployment, changes)


def change(ground: Ground, deployment: Deployment, workers: list[Worker]) -> None:
    """Something happens to one of two to four members."""
    possible = ["sleep"]
    if len(workers) < _MOST:
        possible += ["join", "join"]
    if len(workers) > FEWEST:
        possible += ["leave", "die"]
    drawn = ground.rng.choice(possible)
    if drawn == "join":
        workers.append(ground.worker(deployment))
        workers[-1].wait_for("partitions.taken")
        return
    worker = ground.rng.choice(workers)
    if drawn == "sleep":
        worker.signal(signal.SIGSTOP)
        time.sleep(ground.rng.random() * 2)
        worker.signal(signal.SIGCONT)
        return
    workers.remove(worker)
    if drawn == "leave":
        worker.end()
    else:
        worker.kill()


def _rolling_restart(ground: Ground) -> Outcome:
    """Three static members, restarted one after another: each takes up what it had."""
    names = ("a", "b", "c")
    rounds = ground.times(1, 5)
    with ground.deployment(partitions=_PARTITIONS) as deployment:
        with Traffic(deployment, ground.seed()):
            workers = {name: ground.worker(deployment, instance=name) for name in names}
            for worker in workers.values():
                worker.wait_for("partitions.taken")
            deployment.wait_until_consumed()
            for _ in range(rounds):
                for name in names:
                    taken = {n: w.log().count("partitions.taken") for n, w in workers.items()}
                    workers[name].end()
                    workers[name] = ground.worker(deployment, instance=name)
                    workers[name].wait_for("partitions.taken")
                    for other in set(names) - {name}:
                        again = workers[other].log().count("partitions.taken")
                        assert again == taken[other], f"{other} was given partitions of {name}"
            deployment.wait_until_consumed()
            for worker in workers.values():
                worker.end()
        return ground.close(deployment, rounds * len(names), "no partition moved")


FAULTS = [
    Fault("workers join, leave, die, sleep", _join_and_leave),
    Fault("rolling restart of static members", _rolling_restart),
]
