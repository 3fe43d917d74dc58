"""Items that appear between releases, on a real broker and a real store."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from deploy.local_broker import LocalBroker
from deploy.local_milvus import LocalMilvusLite
from encoder.click import Click
from encoder.interest_index import Interest, InterestIndex
from encoder.item_fields import FieldValue
from encoder.item_topic import announce_items
from lookup import Lookup
from tests.deployment import T0, Deployment, deployed, random_clicks, wait_until
from tests.small_items import field_vectors, release_with_fields

RED = {"title": "red cup", "brand": "acme"}
BLUE = {"title": "blue", "price": 12.0}


@pytest.fixture
def deployment(
    broker: LocalBroker, milvus_lite: LocalMilvusLite, tmp_path: Path
) -> Iterator[Deployment]:
    with deployed(
        broker.bootstrap_servers, milvus_lite.uri, tmp_path, release=release_with_fields
    ) as one:
        yield one


@pytest.fixture
def index(deployment: Deployment) -> Iterator[InterestIndex]:
    found = InterestIndex(deployment.settings.milvus)
    yield found
    found.close()


def say(deployment: Deployment, item_id: str, fields: Mapping[str, FieldValue] | None) -> None:
    """Put an item on the topic."""
    value = None if fields is None else json.dumps(fields).encode()
    announce_items(deployment.settings.kafka, [(item_id, value)])


def stored(index: InterestIndex, release: str, item_id: str) -> bytes | None:
    """The vector under which the store retrieves an item."""
    vector = index.item_vectors(release, [item_id], "Strong").get(item_id)
    return None if vector is None else vector.tobytes()


def interests_of(index: InterestIndex, release: str, user_id: str) -> list[Interest]:
    return index.interests(release, [user_id], 3, "Strong").get(user_id, [])


def assert_as_a_plain_fold(deployment: Deployment) -> None:
    found = deployment.audit()
    assert found.differences == 0, found.report()
    assert found.rows > 0


def test_an_item_is_retrieved_once_it_is_announced_and_until_it_is_withdrawn(
    deployment: Deployment, index: InterestIndex
) -> None:
    """With the vector of its newest fields; a trained one with its own; others stay as they are."""
    release, made_of = deployment.release, field_vectors()
    with deployment.worker():
        deployment.produce(random_clicks(100))
        deployment.wait_until_consumed()
        say(deployment, "new", RED)
        wait_until(lambda: stored(index, release.name, "new") is not None, "the new item")
        assert stored(index, release.name, "new") == made_of.vector(RED).tobytes()
        say(deployment, "new", BLUE)
        changed = made_of.vector(BLUE).tobytes()
        wait_until(lambda: stored(index, release.name, "new") == changed, "the changed item")
        say(deployment, "item-7", None)
        say(deployment, "new", None)
        wait_until(lambda: stored(index, release.name, "new") is None, "the withdrawal")
        wait_until(lambda: stored(index, release.name, "item-7") is None, "the other one")
        say(deployment, "item-7", RED)
        trained = release.items[7].tobytes()
        wait_until(lambda: stored(index, release.name, "item-7") == trained, "its return")
    assert index.count("items", release.name) == len(release.item_ids)


def test_clicks_on_an_item_count_once_it_is_announced(
    deployment: Deployment, index: InterestIndex
) -> None:
    """Without a further click; and no longer once it is withdrawn."""
    name = deployment.release.name
    deployment.produce(random_clicks(300))
    deployment.produce(
        [Click("one", "new", T0 + 1), Click("two", "item-1", T0), Click("two", "new", T0 + 1)]
    )
    with deployment.worker():
        deployment.wait_until_consumed()
        deployment.wait_until_filled()
        assert interests_of(index, name, "one") == []
        (before,) = interests_of(index, name, "two")
        say(deployment, "new", RED)
        wait_until(lambda: len(interests_of(index, name, "one")) == 1, "its interests")
        (interest,) = interests_of(index, name, "one")
        assert interest.exemplar == "new"
        wait_until(
            lambda: not np.array_equal(interests_of(index, name, "two")[0].vector, before.vector),
            "the other user",
        )
        say(deployment, "new", None)
        wait_until(lambda: interests_of(index, name, "one") == [], "the withdrawal")
        wait_until(
            lambda: np.array_equal(interests_of(index, name, "two")[0].vector, before.vector),
            "the other user",
        )
