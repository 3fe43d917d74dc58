"""kill -9: between every two steps, within them, at any moment, while taking over and leaving."""

import random
import signal
import time
from collections.abc import Callable

from tests.deployment import wait_until
from tests.faults.faulty_worker import STEPS, WITHIN_STEPS
from tests.faults.ground import Fault, Ground, Outcome
from tests.faults.traffic import Traffic
from tests.faults.worker import Worker

_TAKING_OVER = ("restoring", "restored", "filled")
_LEAVING = ("leaving",)


def _at_points(points: tuple[str, ...]) -> Callable[[Ground], Outcome]:
    def run(ground: Ground) -> Outcome:
        injected = 0
        with ground.deployment() as deployment:
            with Traffic(deployment, ground.seed()):
                for turn in range(ground.times(1, 5)):
                    # A dynamic member's partitions wait until its session is over.
                    instance = "" if turn == 4 else "w"
                    for point in points:
                        nth = str(ground.rng.randint(1, 4))
                        worker = ground.worker(deployment, point, nth, instance=instance)
                        worker.wait_killed()
                        injected += 1
            return ground.close(deployment, injected)

    return run


def _while_taking_over(ground: Ground) -> Outcome:
    """Each time there is a release that nobody has filled yet, and windows to read back."""
    injected = 0
    with ground.deployment() as deployment:
        first = deployment.release
        with Traffic(deployment, ground.seed()):
            worker = ground.worker(deployment, instance="w")
            worker.wait_for("partitions.taken")
            deployment.wait_until_consumed()
            worker.kill()
            for turn in range(ground.times(1, 5)):
                deployment.publish_next(seed=turn)
                for point in _TAKING_OVER:
                    nth = str(ground.rng.randint(1, 40) if point == "restoring" else 1)
                    ground.worker(deployment, point, nth, instance="w").wait_killed()
                    injected += 1
                worker = ground.worker(deployment, instance="w")
                worker.wait_for("partitions.taken")
                worker.kill()
                injected += 1
        outcome = ground.close(deployment, injected)
        deployment.drop_releases(but=first.name)
        return outcome


def _while_leaving(ground: Ground) -> Outcome:
    injected = 0
    with ground.deployment() as deployment:
        with Traffic(deployment, ground.seed()):
            for _ in range(ground.times(2, 20)):
                worker = ground.worker(deployment, "leaving", "1", instance="w")
                worker.wait_for("partitions.taken")
                worker.signal(signal.SIGTERM)
                worker.wait_killed()
                injected += 1
                worker = ground.worker(deployment, instance="w")
                worker.wait_for("partitions.taken")
                worker.signal(signal.SIGTERM)
                time.sleep(ground.rng.random() * 0.3)  # how far it is by then is the draw
                worker.kill()
                injected += 1
        return ground.close(deployment, injected)


def _at_random_moments(ground: Ground) -> Outcome:
    injected = ground.times(12, 200)
    with ground.deployment() as deployment:
        with Traffic(deployment, ground.seed()):
            for _ in range(injected):
                worker = ground.worker(deployment, instance="w")
                _some_time_after("worker.starting", worker, ground.rng)
                worker.kill()
        return ground.close(deployment, injected)


def _some_time_after(event: str, worker: Worker, rng: random.Random) -> None:
    wait_until(lambda: event in worker.log(), event)
    time.sleep(rng.random() * 2.0)  # the draw


FAULTS = [
    Fault("kill -9 between steps", _at_points(STEPS)),
    Fault(
        "kill -9 within steps",
        _at_points(tuple(p for p in WITHIN_STEPS if p not in (*_TAKING_OVER, *_LEAVING))),
    ),
    Fault("kill -9 at random moments", _at_random_moments),
    Fault("kill -9 while taking over", _while_taking_over),
    Fault("kill -9 while leaving", _while_leaving),
]
