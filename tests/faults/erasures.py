"""Users who ask to be forgotten, under load, while workers die and releases change."""

from encoder.interest_index import InterestIndex
from mindstream.erasure import find_traces, write_tombstone
from tests.deployment import T0, Deployment
from tests.faults.ground import Fault, Ground, Outcome
from tests.faults.traffic import Traffic

_STALLED_S = 60.0


def _forgotten(ground: Ground) -> Outcome:
    """Their tombstones are newer than all their clicks, so that nothing of them may be left.

    Between one erasure and the next a worker is killed, and a new release is published, which the
    next worker fills and serves: rows of the old one's collection must go, too.
    """
    erased = []
    with ground.deployment() as deployment:
        first = deployment.release.name
        with Traffic(deployment, ground.seed()):
            for turn in range(ground.times(2, 10)):
                worker = ground.worker(deployment, instance="w")
                worker.wait_for("partitions.taken")
                deployment.wait_until_consumed()
                if turn % 2 == 0:
                    deployment.publish_next(seed=turn)
                killed = ground.worker(deployment, "written", "1", instance="w")
                killed.wait_killed()
                user = f"user-{2 * turn}"
                erased.append(user)
                other = ground.worker(deployment, instance="w")
                write_tombstone(
                    deployment.settings, user, partition=None, stalled_after_s=_STALLED_S
                )
                other.kill()
        ground.consume(deployment)
        left = [user for user in erased if not _absent(deployment, user)]
        assert not left, f"still there: {left}"
        outcome = ground.close(deployment, len(erased), "no window, no row in any collection")
        deployment.drop_releases(but=first)
        return outcome


def _absent(deployment: Deployment, user: str) -> bool:
    index = InterestIndex(deployment.settings.milvus)
    traces = find_traces(deployment.settings, index, user)
    index.close()
    return traces.absent and traces.erased_at_ms > T0 and not any(traces.rows.values())


FAULTS = [Fault("users forgotten", _forgotten)]
