"""A store that is killed, slow, refuses writes, or has no room left."""

import os
import signal
import time
from collections.abc import Callable

from deploy.local_milvus import LocalMilvusLite, LocalMilvusServer
from encoder.errors import Unavailable
from encoder.milvus_store import MilvusStore
from mindstream.exit_codes import EXIT_UNAVAILABLE
from mindstream.group import committed_offsets
from tests.deployment import T0, Deployment, wait_until
from tests.faults.ground import Fault, Ground, Outcome
from tests.faults.services import CrampedLite
from tests.faults.traffic import Traffic

_SMALL_BUDGET_S = 6.0


def _killed(ground: Ground, server: LocalMilvusServer | LocalMilvusLite, times: int) -> Outcome:
    with ground.deployment(milvus_uri=server.uri) as deployment:
        with Traffic(deployment, ground.seed()):
            worker = ground.worker(deployment, instance="w")
            worker.wait_for("partitions.taken")
            for _ in range(times):
                server.kill()
                time.sleep(ground.rng.random() * 2)  # how long it is away is the draw
                server.start()
                deployment.wait_until_consumed()
            worker.end()
        return ground.close(deployment, times)


def _server_killed(ground: Ground) -> Outcome:
    return _killed(ground, ground.milvus_server(), ground.times(1, 5))


def _lite_killed(ground: Ground) -> Outcome:
    lite = ground.stack.enter_context(LocalMilvusLite())
    return _killed(ground, lite, ground.times(2, 10))


def _server_slow(ground: Ground) -> Outcome:
    """Stopped for seconds at a time: writes wait, within their step's budget."""
    server, injected = ground.milvus_server(), ground.times(2, 10)
    with ground.deployment(milvus_uri=server.uri) as deployment:
        with Traffic(deployment, ground.seed()):
            worker = ground.worker(deployment, instance="w")
            worker.wait_for("partitions.taken")
            for _ in range(injected):
                os.kill(server.pid, signal.SIGSTOP)
                time.sleep(ground.rng.random() * 5)  # the draw
                os.kill(server.pid, signal.SIGCONT)
                deployment.wait_until_consumed()
            worker.end()
        return ground.close(deployment, injected)


def _ends_without_committing(
    ground: Ground, deployment: Deployment, spoil: Callable[[], None], turn: int = 0
) -> None:
    """A worker whose writes fail until its budget is spent, in turn."""
    worker = ground.worker(deployment, instance="w")
    worker.wait_for("partitions.taken")
    deployment.wait_until_consumed()
    spoil()
    before = committed_offsets(deployment.settings, deployment.partitions)
    # Clicks newer than all before: a batch that changes no window has nothing to write.
    with Traffic(deployment, ground.seed(), start_ms=T0 + (turn + 1) * 10_000_000):
        assert worker.wait_ended() == EXIT_UNAVAILABLE, worker.log()
    after = committed_offsets(deployment.settings, deployment.partitions)
    assert after == before, f"committed {after} after {before}, though nothing could be written"


def _refuses(deployment: Deployment) -> bool:
    """Whether the store takes no writes; it only begins to some time after its start."""
    store = MilvusStore(deployment.settings.milvus)
    try:
        store.delete(
            f"interests_{deployment.release.name}",
            "id",
            ["nobody#0"],
            deadline=time.monotonic() + 0.5,
        )
    except Unavailable:
        return True
    finally:
        store.close()
    return False


def _server_refuses(ground: Ground) -> Outcome:
    """Its writing is denied: the worker ends by 75 once its budget is spent."""
    server = ground.milvus_server()
    with ground.deployment(milvus_uri=server.uri, step_budget_s=_SMALL_BUDGET_S) as deployment:
        with Traffic(deployment, ground.seed()):
            ground.consume(deployment)

        def deny() -> None:
            server.refuse = True
            server.kill()
            server.start()
            wait_until(lambda: _refuses(deployment), "the server to refuse writes")

        _ends_without_committing(ground, deployment, deny)
        server.refuse = False
        server.kill()
        server.start()
        return ground.close(deployment, 1, f"exit code {EXIT_UNAVAILABLE}")


def _disk_full(ground: Ground) -> Outcome:
    """No room in Milvus Lite's folder: the worker ends by 75; with room again, nothing is lost."""
    injected = ground.times(1, 5)
    lite = ground.stack.enter_context(CrampedLite())
    with ground.deployment(milvus_uri=lite.uri, step_budget_s=_SMALL_BUDGET_S) as deployment:
        with Traffic(deployment, ground.seed()):
            ground.consume(deployment)
        for turn in range(injected):
            _ends_without_committing(ground, deployment, lite.fill, turn)
            lite.clear()
        return ground.close(deployment, injected, f"exit code {EXIT_UNAVAILABLE}")


FAULTS = [
    Fault("Milvus server killed and restarted", _server_killed),
    Fault("Milvus server slow", _server_slow),
    Fault("Milvus server refuses writes", _server_refuses),
    Fault("Milvus Lite killed and restarted", _lite_killed),
    Fault("Milvus Lite on a full disk", _disk_full),
]
