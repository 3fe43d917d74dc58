"""A windows topic that is corrupt, truncated, or created again: refused, and rebuilt."""

from collections.abc import Callable

from encoder.errors import Misconfigured
from encoder.interest_index import InterestIndex
from encoder.kafka_client import admin_client, producer
from encoder.topics import create_topics
from encoder.windows_topic import read_extents
from mindstream.exit_codes import EXIT_MISCONFIGURED
from mindstream.group import refuse_members
from mindstream.rebuild import rebuild_windows
from tests.deleted_records import delete_records
from tests.deployment import DEADLINE_S, Deployment, wait_until
from tests.faults.ground import Fault, Ground, Outcome
from tests.faults.traffic import Traffic


def _corrupt(deployment: Deployment) -> None:
    topic = deployment.settings.kafka.windows_topic
    client = producer(deployment.settings.kafka)
    client.send(topic, key=b"user-1", value=b"\x09", partition=0).get(timeout=DEADLINE_S)
    client.close()


def _truncate(deployment: Deployment) -> None:
    kafka = deployment.settings.kafka
    extents = read_extents(kafka, range(deployment.partitions))
    halves = {partition: (one.start + one.end) // 2 for partition, one in extents.items()}
    delete_records(kafka, kafka.windows_topic, halves)


def _create_again(deployment: Deployment) -> None:
    kafka = deployment.settings.kafka
    with admin_client(kafka) as admin:
        admin.delete_topics([kafka.windows_topic])
        wait_until(lambda: kafka.windows_topic not in admin.list_topics(), "the topic to go")
    create_topics(deployment.settings, partitions=deployment.partitions, replication=1)


def _is_empty(deployment: Deployment) -> bool:
    try:
        refuse_members(deployment.settings)
    except Misconfigured:
        return False
    return True


def _damaged(*damages: Callable[[Deployment], None]) -> Callable[[Ground], Outcome]:
    def run(ground: Ground) -> Outcome:
        with ground.deployment() as deployment:
            for damage in damages:
                with Traffic(deployment, ground.seed()):
                    ground.consume(deployment)
                damage(deployment)
                refused = ground.worker(deployment, instance="w")
                assert refused.wait_ended() == EXIT_MISCONFIGURED, refused.log()
                assert "mindstream rebuild" in refused.log(), refused.log()
                wait_until(lambda: _is_empty(deployment), "the group to be empty")
                index = InterestIndex(deployment.settings.milvus)
                rebuild_windows(deployment.settings, index)
                index.close()
            return ground.close(deployment, len(damages), f"exit code {EXIT_MISCONFIGURED}")

    return run


FAULTS = [Fault("windows topic damaged", _damaged(_corrupt, _truncate, _create_again))]
