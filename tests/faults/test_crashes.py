"""A worker killed between any two steps loses nothing and leaves nothing wrong behind."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from consumers.update_loop import Step
from deploy.local_broker import LocalBroker
from deploy.local_milvus import LocalMilvusLite
from tests.deployment import DEADLINE_S, Deployment, deployed, end, random_clicks


@pytest.fixture
def deployment(
    broker: LocalBroker, milvus_lite: LocalMilvusLite, tmp_path: Path
) -> Iterator[Deployment]:
    with deployed(broker.bootstrap_servers, milvus_lite.uri, tmp_path, partitions=2) as one:
        yield one


@pytest.mark.parametrize(
    ("step", "instance"), [*((step, "w") for step in get_args(Step)), ("written", "")]
)
def test_a_worker_killed_after_a_step_is_repaired_by_the_next(
    deployment: Deployment, step: Step, instance: str
) -> None:
    """Killed twice in its first batches, then left alone: the store is the fold of the topic."""
    clicks = random_clicks(800, users=15)
    workers = []
    try:
        deployment.produce(clicks[:400])
        for nth in (2, 1):
            workers.append(deployment.worker_process(step, str(nth), instance=instance))
            assert workers[-1].wait(DEADLINE_S) == -signal.SIGKILL, deployment.worker_log()
        deployment.produce(clicks[400:])
        workers.append(deployment.worker_process(instance=instance))
        deployment.wait_until_consumed()
    finally:
        codes = end(workers)
    assert codes[-1] == 0, deployment.worker_log()
    audit = deployment.audit()
    assert audit.differences == 0, audit.report()
