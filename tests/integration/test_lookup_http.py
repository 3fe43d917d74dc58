"""The look-up service as its users meet it: a process, and requests over HTTP."""

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from deploy.local_broker import LocalBroker
from deploy.local_milvus import LocalMilvusLite
from deploy.loopback import free_ports
from encoder.click import Click
from lookup import Lookup
from mindstream.environment import child_environment
from tests.deployment import ITEMS, T0, Deployment, deployed, random_clicks, wait_until
from tests.lookup_service import get, lookup_service

ODD = "a/b ü?#"


def test_answers_are_those_of_the_client(deployment: Deployment) -> None:
    """Also for ids with slashes, and for users of whom nothing is known."""
    deployment.produce([*random_clicks(200), Click(ODD, "item-3", T0)])
    deployment.consume_all()
    with lookup_service(deployment.settings) as url:
        with Lookup(deployment.settings.milvus) as lookup:
            for user in ("user-1", ODD):
                mine, theirs = lookup.interests(user), lookup.candidates(user, limit=7)
                path = f"/users/{quote(user, safe='')}"
                status, found = get(url, f"{path}/interests?vectors=true&consistency=Strong")
                assert status == 200
                assert found["user"] == user
                assert found["release"] == deployment.release.name
                assert [one["slot"] for one in found["interests"]] == [
                    one.slot for one in mine.interests
                ]
                for one, other in zip(found["interests"], mine.interests, strict=True):
                    assert one["vector"] == pytest.approx(other.vector.tolist())
                    assert (one["exemplar"], one["updated_at"]) == (
                        other.exemplar,
                        other.updated_at,
                    )
                _, found = get(url, f"{path}/candidates?limit=7")
                assert [hit["id"] for hit in found["items"]] == [hit.id for hit in theirs.items]
            audience = lookup.audience("item-3", limit=5)
            _, found = get(url, "/items/item-3/audience?limit=5")
            assert [hit["id"] for hit in found["users"]] == [hit.id for hit in audience.users]
        assert "vector" not in get(url, "/users/user-1/interests")[1]["interests"][0]
        _, found = get(url, "/users/nobody/candidates")
        assert found == {"user": "nobody", "release": deployment.release.name, "items": []}
        _, text = get(url, "/metrics")
        assert 'mindstream_lookup_seconds_count{request="interests",status="200"}' in text


def test_candidates_are_the_same_whoever_searches_the_items(deployment: Deployment) -> None:
    """In memory as in the store, which is asked where there are more items than allowed."""
    deployment.produce(random_clicks(200))
    deployment.consume_all()
    milvus = deployment.settings.milvus
    with (
        Lookup(milvus) as by_store,
        Lookup(milvus, items_in_memory=ITEMS) as in_memory,
        Lookup(milvus, items_in_memory=ITEMS - 1) as too_many,
        lookup_service(deployment.settings) as url,
    ):
        for lookup in (in_memory, too_many):
            lookup.release()  # begins to load
        wait_until(lambda: in_memory.items_are_in_memory, "the items")
        served = "mindstream_lookup_items_in_memory 1.0"
        wait_until(lambda: served in get(url, "/metrics")[1], "the service to have the items")
        too_many.close()  # waits for what it loads
        for user in ("user-1", "user-2", "nobody"):
            expected = by_store.candidates(user, limit=50, consistency="Strong").items
            found = in_memory.candidates(user, limit=50, consistency="Strong").items
            assert [hit.id for hit in found] == [hit.id for hit in expected]
            assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected])
            _, answer = get(url, f"/users/{user}/candidates?consistency=Strong")
            assert [hit["id"] for hit in answer["items"]] == [hit.id for hit in expected]
        assert not by_store.items_are_in_memory
        assert too_many._tables.get(deployment.release.name) is None


@pytest.mark.parametrize(
    ("path", "status", "why"),
    [
        ("/users/u/candidates?limit=0", 400, "limit: Input should be greater than or equal to 1"),
        ("/users/u/candidates?limit=many", 400, "limit: .*got 'many'"),
        ("/users/u/interests?fast=1", 400, "no such parameter: fast"),
        ("/users/u/interests?consistency=weak", 400, "consistency must be one of Strong, Bounded"),
        ("/items/none/audience", 404, "has no item 'none'"),
    ],
)
def test_what_is_wrong_is_named(consumed: str, path: str, status: int, why: str) -> None:
    """Every refusal is JSON."""
    found, answer = get(consumed, path)
    assert found == status
    assert re.search(why, answer["error"])


@pytest.fixture(scope="module")
def consumed(
    broker: LocalBroker, milvus_lite: LocalMilvusLite, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("consumed")
    with deployed(broker.bootstrap_servers, milvus_lite.uri, folder) as deployment:
        deployment.produce(random_clicks(20))
        deployment.consume_all()
        with lookup_service(deployment.settings) as url:
            yield url


def test_it_is_ready_once_a_release_is_in_use(broker: LocalBroker, tmp_path: Path) -> None:
    """In a store of its own: which release is in use is said once for a whole store."""
    with (
        LocalMilvusLite() as store,
        deployed(broker.bootstrap_servers, store.uri, tmp_path) as deployment,
        lookup_service(deployment.settings) as url,
    ):
        status, text = get(url, "/readyz")
        assert status == 503
        assert "no release is in use" in text
        deployment.produce(random_clicks(5))
        deployment.consume_all()
        assert get(url, "/readyz") == (200, deployment.release.name)


def test_a_port_that_is_taken_is_named(deployment: Deployment) -> None:
    """It ends with a code that says so."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = subprocess.run(
            [sys.executable, "-m", "mindstream", "serve"],
            env={
                **child_environment(deployment.settings),
                "MINDSTREAM_LOOKUP__HTTP_PORT": str(taken.getsockname()[1]),
            },
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 78
    assert "MINDSTREAM_LOOKUP__HTTP_PORT" in done.stderr


def test_a_store_that_is_away_at_the_start(deployment: Deployment) -> None:
    """It ends with a code that says so."""
    (port,) = free_ports(1)
    done = subprocess.run(
        [sys.executable, "-m", "mindstream", "serve"],
        env={
            **child_environment(deployment.settings),
            "MINDSTREAM_MILVUS__URI": f"http://127.0.0.1:{port}",
            "MINDSTREAM_MILVUS__TIMEOUT_S": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 75
    assert "MINDSTREAM_MILVUS__URI" in done.stderr
