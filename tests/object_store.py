"""An S3-compatible store on this machine, behind a port; moto's server."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import boto3
import pytest
from moto import settings as moto_settings
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

BUCKET = "artefacts"


@dataclass(frozen=True)
class ObjectStore:
    """A running store, which holds one bucket.

    Attributes:
        endpoint: of its HTTP API.
        server: the thread that serves it.
    """

    endpoint: str
    server: ThreadedMotoServer

    @property
    def client(self) -> boto3.client:
        """boto3's own, which shares no code with what is tested."""
        return boto3.client("s3")

    def held(self) -> set[str]:
        """The keys of all objects in the bucket."""
        return {one["Key"] for one in self.client.list_objects_v2(Bucket=BUCKET)["Contents"]}


def environment(endpoint: str) -> dict[str, str]:
    """How any client of S3 finds it: what AWS's own tools read."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "mindstream",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
    }


def demand_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let in only keys that the store has given out; nobody was given any."""
    monkeypatch.setattr(moto_settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0.0)


@contextmanager
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A store, and the environment of this process set to it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        store = ObjectStore(f"http://{host}:{port}", server)
        for name, value in environment(store.endpoint).items():
            monkeypatch.setenv(name, value)
        S3FileSystem.clear_instance_cache()  # one that is kept remembers another endpoint
        store.client.create_bucket(Bucket=BUCKET)
        yield store
    finally:
        S3FileSystem.clear_instance_cache()
        server.stop()
