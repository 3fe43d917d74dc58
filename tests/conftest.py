"""Servers for the tests that need one: started once, shared, and required.

A server that cannot be had is a failure, not a reason to skip. Tests share it by names of their
own (topics, groups, collections) and delete only those.
"""

import gc
import logging
import os
from collections.abc import Iterator

import pytest

from deploy.local_broker import LocalBroker
from deploy.local_milvus import LocalMilvusLite, LocalMilvusServer

_notify = logging.getLogger("tests.servers").info


def pytest_configure() -> None:
    """Brokers of tests live for seconds: Java need not compile for the long run."""
    os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_open() -> Iterator[None]:
    """What only the collector finds open fails the last test of its process.

    pytest looks for it after that, where xdist's processes have nobody to tell any more.
    """
    yield
    gc.collect()


@pytest.fixture(scope="session")
def broker() -> Iterator[LocalBroker]:
    """A running Kafka, the one that the environment names if it does."""
    with LocalBroker(notify=_notify) as running:
        yield running


@pytest.fixture(scope="session")
def milvus_lite() -> Iterator[LocalMilvusLite]:
    """Milvus Lite behind a port."""
    with LocalMilvusLite(notify=_notify) as running:
        yield running


@pytest.fixture(scope="session")
def milvus_server() -> Iterator[LocalMilvusServer]:
    """A real Milvus server; slow to start, so one file of tests has those that share it."""
    with LocalMilvusServer(notify=_notify) as running:
        yield running
