"""A deployment of its own for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from milvus_lite.db import MilvusLite

from deploy.local_broker import LocalBroker
from deploy.local_milvus import LocalMilvusLite
from encoder.milvus_lite import use_safe_collections
from tests.deployment import Deployment, deployed


@pytest.fixture
def deployment(
    broker: LocalBroker, milvus_lite: LocalMilvusLite, tmp_path: Path
) -> Iterator[Deployment]:
    """Topics, a published release and workers under names of their own.

    With as short a session as any broker allows: a new owner waits for it before it fills.
    """
    worker = {"session_timeout_s": 6.0}
    with deployed(broker.bootstrap_servers, milvus_lite.uri, tmp_path, worker=worker) as one:
        yield one


@pytest.fixture
def lite_database(tmp_path: Path) -> Iterator[MilvusLite]:
    """An empty folder of Milvus Lite."""
    use_safe_collections()
    opened = MilvusLite(str(tmp_path / "lite.db"))
    yield opened
    opened.close()
