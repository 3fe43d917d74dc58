"""Clients of Kafka that are closed in the middle of something."""

import gc
import threading
import warnings

import numpy as np
from kafka import KafkaConsumer

from encoder.kafka_client import client_config
from tests.deployment import Deployment


def test_no_socket_is_left_open(deployment: Deployment) -> None:
    """Neither one that was being connected nor one with something left to send.

    Closed some milliseconds after the start, while other threads take the processor.
    """
    config = client_config(deployment.settings.kafka)
    rng = np.random.default_rng(0)
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            sum(range(10_000))

    others = [threading.Thread(target=compute) for _ in range(2)]
    for one in others:
        one.start()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for number in range(40):
                consumer = KafkaConsumer(**config, group_id=f"closed-{number}")
                consumer.subscribe([deployment.settings.kafka.clicks_topic])
                consumer.poll(timeout_ms=int(rng.choice([0, 1, 5, 20])))
                consumer.close(autocommit=False)
                del consumer
                gc.collect()
    finally:
        over.set()
        for one in others:
            one.join()
    assert [str(one.message) for one in caught if one.category is ResourceWarning] == []
