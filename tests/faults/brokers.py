"""A broker that is restarted, killed, slow, or not there."""

import os
import signal
import time

from deploy.loopback import free_ports
from mindstream.exit_codes import EXIT_UNAVAILABLE
from tests.faults.ground import Fault, Ground, Outcome
from tests.faults.traffic import Traffic


def _restarted(ground: Ground) -> Outcome:
    """Killed and shut down by turns, under two workers, which go on."""
    injected = ground.times(2, 10)
    with ground.deployment(partitions=4) as deployment:
        with Traffic(deployment, ground.seed()):
            workers = [ground.worker(deployment, instance=name) for name in ("a", "b")]
            for worker in workers:
                worker.wait_for("partitions.taken")
            for turn in range(injected):
                end = ground.broker.stop if turn % 2 else ground.broker.kill
                end()
                time.sleep(ground.rng.random() * 2)  # how long it is away is the draw
                ground.broker.start()
                deployment.wait_until_consumed()
            for worker in workers:
                worker.end()
        return ground.close(deployment, injected)


def _slow(ground: Ground) -> Outcome:
    """Stopped for seconds at a time, now and then for longer than a session."""
    injected = ground.times(2, 15)
    with ground.deployment(partitions=4) as deployment:
        with Traffic(deployment, ground.seed()):
            workers = [ground.worker(deployment) for _ in range(2)]
            for worker in workers:
                worker.wait_for("partitions.taken")
            for turn in range(injected):
                os.kill(ground.broker.pid, signal.SIGSTOP)
                time.sleep(8 if turn % 3 == 1 else ground.rng.random() * 3)  # the draw
                os.kill(ground.broker.pid, signal.SIGCONT)
                deployment.wait_until_consumed()
            for worker in workers:
                worker.end()
        return ground.close(deployment, injected)


def _away(ground: Ground) -> Outcome:
    """Not there at the start, and gone for longer than the poll interval: the worker ends by 75."""
    budgets = {"step_budget_s": 4.0, "max_poll_interval_s": 17.0}
    with ground.deployment(**budgets) as deployment:
        with Traffic(deployment, ground.seed()) as traffic:
            (port,) = free_ports(1)
            nowhere = {"MINDSTREAM_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{port}"}
            lost = ground.worker(deployment, **nowhere)
            assert lost.wait_ended() == EXIT_UNAVAILABLE, lost.log()
            assert "MINDSTREAM_KAFKA__BOOTSTRAP_SERVERS" in lost.log(), lost.log()
            worker = ground.worker(deployment, instance="w")
            worker.wait_for("partitions.taken")
            deployment.wait_until_consumed()
            traffic.pause()
            ground.broker.stop()
            assert worker.wait_ended() == EXIT_UNAVAILABLE, worker.log()
            ground.broker.start()
            traffic.resume()
        return ground.close(deployment, 2, f"exit code {EXIT_UNAVAILABLE}")


FAULTS = [
    Fault("broker killed and restarted", _restarted),
    Fault("broker slow", _slow),
    Fault("broker away", _away),
]
