"""What a record costs the worker's producer: `python -m benchmarks.bulk_send`.

One process fills a real broker's topic within transactions, record by record and many at a time.
"""

import json
import time
import uuid
from collections.abc import Callable
from typing import Any

from kafka import KafkaProducer
from kafka.admin import NewTopic

from benchmarks.results import say
from consumers.bulk_send import send_all
from deploy.local_broker import LocalBroker
from encoder.kafka_client import admin_client, producer
from encoder.settings import KafkaSettings

_RECORDS, _VALUE_BYTES, _PARTITIONS, _ROUNDS = 1000, 900, 8, 40


def main() -> None:
    """Print microseconds of the process's CPU time and of the clock, a record."""
    records = [(b"user-%08d" % number, bytes(_VALUE_BYTES)) for number in range(_RECORDS)]

    def one_by_one(client: KafkaProducer, topic: str) -> None:
        sent = [
            client.send(topic, key=key, value=value, partition=number % _PARTITIONS)
            for number, (key, value) in enumerate(records)
        ]
        client.flush()
        for future in sent:
            future.get()

    def many(client: KafkaProducer, topic: str) -> None:
        sent = [
            batch
            for partition in range(_PARTITIONS)
            for batch in send_all(client, topic, partition, records[partition::_PARTITIONS])
        ]
        client.flush()
        for batch in sent:
            batch.first_offset(60.0)

    with LocalBroker() as broker:
        settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        for name, way in (("send", one_by_one), ("send_all", many)):
            say(json.dumps({"name": name, **_cost(settings, way)}))


def _cost(settings: KafkaSettings, way: Callable[[KafkaProducer, str], None]) -> dict[str, float]:
    topic = f"bulk.{uuid.uuid4().hex[:8]}"
    with admin_client(settings) as admin:
        admin.create_topics([NewTopic(topic, num_partitions=_PARTITIONS, replication_factor=1)])
    client: Any = producer(
        settings, transactional_id=topic, compression_type="lz4", linger_ms=5, batch_size=1 << 18
    )
    client.init_transactions()
    cpu_s = clock_s = 0.0
    for number in range(_ROUNDS):
        cpu, clock = time.process_time(), time.perf_counter()
        client.begin_transaction()
        way(client, topic)
        client.commit_transaction()
        if number >= _ROUNDS // 4:  # warm
            cpu_s += time.process_time() - cpu
            clock_s += time.perf_counter() - clock
    client.close()
    count = _RECORDS * (_ROUNDS - _ROUNDS // 4)
    return {
        "cpu_us": round(cpu_s / count * 1e6, 1),
        "clock_us": round(clock_s / count * 1e6, 1),
        "records_a_transaction": _RECORDS,
    }


if __name__ == "__main__":
    main()
