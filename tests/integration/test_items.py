"""Items that appear between releases, on a real broker and a real store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import structlog

from consumers.update_loop import Step
from deploy.local_broker import LocalBroker
from deploy.local_milvus import LocalMilvusLite
from encoder.click import Click
from encoder.interest_index import Interest, InterestIndex
from encoder.item_fields import FieldValue
from encoder.item_topic import announce_items, read_items
from lookup import Lookup
from mindstream.environment import environment_of
from mindstream.exit_codes import EXIT_MISCONFIGURED
from mindstream.release_switch import switch
from tests.deployment import DEADLINE_S, T0, Deployment, deployed, random_clicks, wait_until
from tests.small_items import field_vectors, release_with_fields
from training.item_reader import catalogue_from_topic
from training.publication import publish
from training.trainer import Catalogue

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


def test_a_worker_that_starts_later_leaves_the_same(
    deployment: Deployment, index: InterestIndex
) -> None:
    """What was announced while none ran is in every user's rows, and the store retrieves it."""
    deployment.produce(random_clicks(300))
    deployment.consume_all()
    for number, fields in ((61, RED), (62, BLUE), (63, {}), (64, RED)):
        say(deployment, f"item-{number}", fields)
    say(deployment, "item-3", None)
    with deployment.worker():
        deployment.wait_until_consumed()
        wait_until(lambda: deployment.audit().differences == 0, "the same as a plain fold")
    say(deployment, "item-61", BLUE)
    say(deployment, "item-64", None)
    say(deployment, "item-65", RED)
    with deployment.worker():
        wait_until(lambda: deployment.audit().differences == 0, "the same as a plain fold")
    assert_as_a_plain_fold(deployment)
    assert stored(index, deployment.release.name, "item-65") is not None


def test_items_of_a_release_that_comes_later_are_there_when_it_is_used(
    deployment: Deployment, index: InterestIndex
) -> None:
    """The publisher embeds what was announced; what comes afterwards, too, before readers go."""
    deployment.produce(random_clicks(300))
    say(deployment, "item-61", RED)
    say(deployment, "item-3", None)
    with deployment.worker():
        deployment.wait_until_consumed()
        new = release_with_fields(deployment.folder, f"{deployment.release.name}_b", seed=7)
        publish(new, deployment.settings, index)
        assert stored(index, new.name, "item-61") == field_vectors(7).vector(RED).tobytes()
        assert stored(index, new.name, "item-3") is None
        say(deployment, "item-62", RED)
        certificate = switch(deployment.settings, index, new.name)
        assert certificate.sampled == certificate.users
        assert stored(index, new.name, "item-62") is not None
        old, deployment.release = deployment.release, new
        wait_until(lambda: deployment.audit().differences == 0, "the same as a plain fold")
        deployment.release = old
        wait_until(lambda: deployment.audit().differences == 0, "the same as a plain fold")
    index.drop_release(new.name)


def test_readers_with_items_in_memory_see_what_changes(
    deployment: Deployment, index: InterestIndex
) -> None:
    """Within seconds, as those that ask the store; also what changed before they came."""
    name = deployment.release.name
    deployment.produce(random_clicks(300))
    deployment.produce([Click("one", "item-5", T0)])
    say(deployment, "item-4", None)
    with (
        deployment.worker(),
        Lookup(deployment.settings.milvus, consistency="Strong", items_in_memory=1000) as memory,
        Lookup(deployment.settings.milvus, consistency="Strong") as store,
    ):
        deployment.wait_until_consumed()
        wait_until(lambda: stored(index, name, "item-4") is None, "the first withdrawal")
        wait_until(lambda: index.release_in_use() is not None, "a release in use")

        def found(lookup: Lookup) -> set[str]:
            return {hit.id for hit in lookup.candidates("one", limit=100).items}

        trained = set(deployment.release.item_ids)
        wait_until(lambda: memory.items_are_in_memory, "the items")
        wait_until(lambda: found(memory) == found(store) == trained - {"item-4"}, "the same")
        say(deployment, "new", RED)
        say(deployment, "item-4", {})
        wait_until(lambda: found(store) == trained | {"new"}, "the new item in the store")
        wait_until(lambda: found(memory) == trained | {"new"}, "the new item in memory")
        say(deployment, "new", None)
        say(deployment, "item-9", None)
        wait_until(lambda: found(memory) == trained - {"item-9"}, "the withdrawals in memory")
        assert found(store) == found(memory)


def test_a_bad_record_harms_nothing_else(deployment: Deployment, index: InterestIndex) -> None:
    """It is told where it lies; the items before and after it are retrieved."""
    name = deployment.release.name
    records = [
        ("first", json.dumps(RED).encode()),
        ("broken", b"{"),
        ("other", b'{"item_id": "another", "title": "red"}'),
        ("number", b'{"title": 3, "brand": "acme", "more": {"deep": [1]}}'),
        ("last", json.dumps(BLUE).encode()),
    ]
    with structlog.testing.capture_logs() as logs, deployment.worker():
        wait_until(lambda: any(e["event"] == "partitions.taken" for e in logs), "a worker")
        announce_items(deployment.settings.kafka, records)
        sound = ("first", "number", "last")
        wait_until(lambda: all(stored(index, name, one) for one in sound), "the sound ones")
    assert stored(index, name, "broken") is stored(index, name, "other") is None
    reasons = {e["reason"] for e in logs if e["event"] == "item.rejected"}
    assert reasons == {"not_json", "key_mismatch"}
    assert all(e["offset"] >= 0 for e in logs if e["event"] == "item.rejected")
    (ignored,) = [e for e in logs if e["event"] == "item.field_ignored"]
    assert "field title" in ignored["problems"][0]
    assert deployment.audit().differences == 0


def test_a_worker_that_dies_while_users_are_encoded_anew_leaves_the_rest(
    deployment: Deployment, index: InterestIndex
) -> None:
    """Its successor knows the item from the beginning, and encodes those users all the same."""
    # It writes users of recent clicks again after a session, which would hide what is tested here.
    worker = deployment.settings.worker.model_copy(update={"session_timeout_s": 200.0})
    deployment.settings = deployment.settings.model_copy(update={"worker": worker})
    users = [f"user-{number}" for number in range(600)]
    deployment.produce([Click(user, "new", T0) for user in users])
    deployment.produce([Click(user, "item-1", T0 + 1) for user in users])
    announced = threading.Event()
    steps: list[Step] = []

    def crash(step: Step) -> None:
        if announced.is_set() and step == "written":
            steps.append(step)
            if len(steps) == 3:
                raise RuntimeError("crash")

    def announce_and_wait() -> None:
        deployment.wait_until_consumed()
        deployment.wait_until_filled()
        announced.set()
        say(deployment, "new", RED)
        wait_until(lambda: len(steps) >= 3, "a crash")

    with pytest.raises(RuntimeError, match="crash"), deployment.worker(crash):
        announce_and_wait()
    assert deployment.audit().different
    with deployment.worker():
        wait_until(lambda: deployment.audit().differences == 0, "the same as a plain fold")


def test_a_withdrawal_is_undone_though_nobody_knows_of_it_but_the_worker_that_died(
    deployment: Deployment, index: InterestIndex
) -> None:
    """It withdrew a trained item and told no readers; its successor sees only the item's return."""
    name = deployment.release.name
    worker = deployment.settings.worker.model_copy(update={"session_timeout_s": 6.0})
    deployment.settings = deployment.settings.model_copy(update={"worker": worker})
    deployment.produce([Click("one", "item-1", T0)])
    process = deployment.worker_process("item upserted", "1", instance="w")
    wait_until(lambda: "partitions.taken" in deployment.worker_log(), "a worker")
    say(deployment, "item-7", None)
    assert process.wait(DEADLINE_S) == -signal.SIGKILL
    assert stored(index, name, "item-7") is None
    say(deployment, "item-7", RED)
    with deployment.worker():
        wait_until(lambda: stored(index, name, "item-7") is not None, "its return")
        wait_until(lambda: deployment.audit().differences == 0, "the same as a plain fold")


def test_a_catalogue_is_loaded_from_a_file_and_items_are_withdrawn(deployment: Deployment) -> None:
    """By the command; a bad line is named, and then nothing is put on the topic."""
    settings, file = deployment.settings, deployment.folder / "items.jsonl"
    file.write_text('{"item_id": "cup", "title": "red"}\n{"item_id": "bowl", "price": 3}\n')
    environment = {**os.environ, **environment_of(settings)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mindstream", "items", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    assert run("load", str(file)).stdout == "2 items\n"
    assert run("withdraw", "bowl").stdout == "1 items withdrawn\n"
    file.write_text('{"item_id": "plate"}\n{"title": "red"}\n')
    refused = run("load", str(file))
    assert refused.returncode == EXIT_MISCONFIGURED
    assert "line 2" in refused.stderr
    said = {record.item_id: record for record in read_items(settings.kafka).since({})}
    assert {item_id: record.withdrawn for item_id, record in said.items()} == {
        "cup": False,
        "bowl": True,
    }
    assert said["cup"].fields() == {"title": "red"}
    asked = settings.model_copy(
        update={
            "trainer": settings.trainer.model_copy(
                update={"item_fields": {"title": "words", "price": "value"}}
            )
        }
    )
    assert catalogue_from_topic(settings) is None
    announce_items(settings.kafka, [("plate", b'{"title": "blue", "price": 3}')])
    told: list[str] = []
    catalogue = catalogue_from_topic(asked, told.append)
    assert catalogue == Catalogue(
        {"title": "words", "price": "value"},
        {"cup": {"title": "red", "price": None}, "plate": {"title": "blue"}},
    )
    assert told == ["2 items have fields (title, price); 1 values do not fit"]
