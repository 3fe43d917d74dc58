"""Candidates by a release's mix: from clicks to look-ups, on a real broker and a real store."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from deploy.local_broker import LocalBroker
from deploy.local_milvus import LocalMilvusLite
from encoder.click import Click
from encoder.interest_index import Hit, InterestIndex
from encoder.interests import InterestRows, interest_key
from encoder.item_topic import announce_items
from encoder.mix import Mix, recent_of
from encoder.release import Release
from lookup import Lookup
from mindstream.environment import child_environment
from mindstream.release_switch import switch
from tests.deployment import ITEMS, T0, Deployment, deployed, random_clicks, wait_until
from tests.lookup_service import get, lookup_service
from tests.small_release import make_small_release
from training.publication import publish

MIX = Mix(interests=2, popular=1, own=0.8, again=0.5, later=-0.3, alike=-1, clicks=12)


def mixed_release(folder: Path, name: str) -> Release:
    return make_small_release(
        folder / name, items=ITEMS, width=8, interests=3, window_length=8, name=name, mix=MIX
    )


@pytest.fixture
def deployment(
    broker: LocalBroker, milvus_lite: LocalMilvusLite, tmp_path: Path
) -> Iterator[Deployment]:
    with deployed(
        broker.bootstrap_servers, milvus_lite.uri, tmp_path, release=mixed_release
    ) as one:
        # The encoder reads the newest eight of them, the mix twelve.
        one.settings = one.settings.model_copy(update={"window_length": 14})
        yield one


def expected(deployment: Deployment, user_id: str, limit: int, gone: str = "") -> list[Hit]:
    """By the rule, item by item, from what the store has of the user."""
    release = deployment.release
    assert release.popularity is not None
    index = InterestIndex(deployment.settings.milvus)
    rows = index.interests(release.name, [user_id], 3, "Strong", recent=True).get(user_id, [])
    index.close()
    own: dict[str, float] = {}
    for row in rows:
        own |= MIX.of_own(recent_of(row.recent))
    hits = []
    for item_id, vector, popularity in zip(
        release.item_ids, release.items[1:], release.popularity.tolist(), strict=True
    ):
        near = max((float(row.vector @ vector) for row in rows), default=0.0)
        hits.append(Hit(item_id, MIX.score(near, popularity, own.get(item_id))))
    hits = [hit for hit in hits if hit.id != gone]
    return sorted(hits, key=lambda hit: -hit.score)[:limit]


def test_candidates_are_those_of_the_rule(deployment: Deployment) -> None:
    """In memory, in the store and over HTTP; who is not known gets what is popular."""
    deployment.produce([*random_clicks(200), Click("one", "item-3", T0), Click("x", "none", T0)])
    deployment.consume_all()
    assert deployment.audit().differences == 0
    milvus = deployment.settings.milvus
    with (
        Lookup(milvus, consistency="Strong") as by_store,
        Lookup(milvus, items_in_memory=ITEMS, consistency="Strong") as in_memory,
        lookup_service(deployment.settings) as url,
    ):
        in_memory.release()
        wait_until(lambda: in_memory.items_are_in_memory, "the items")
        differ = 0
        for user in ("user-1", "user-2", "one", "x", "nobody"):
            rule = expected(deployment, user, 10)
            for lookup in (by_store, in_memory):
                found = lookup.candidates(user, limit=10, mixed=True)
                assert found.mixed
                assert [hit.id for hit in found.items] == [hit.id for hit in rule]
                assert [hit.score for hit in found.items] == pytest.approx(
                    [hit.score for hit in rule], abs=1e-5
                )
                plain = lookup.candidates(user, limit=10)
                assert not plain.mixed
                differ += plain.items != found.items
            _, answer = get(url, f"/users/{user}/candidates?mixed=true&limit=10&consistency=Strong")
            assert [hit["id"] for hit in answer["items"]] == [hit.id for hit in rule]
            assert answer["mixed"] is True
        assert differ == 10
        assert [hit.id for hit in rule] == [f"item-{ITEMS - n}" for n in range(10)]
        assert "mixed" not in get(url, "/users/one/candidates")[1]
    for options, mixed in (["--mixed"], True), ([], False):
        shown = subprocess.run(
            [sys.executable, "-m", "mindstream", "lookup", "one", "--limit=10", "--json", *options],
            env=child_environment(deployment.settings),
            capture_output=True,
            check=True,
        )
        found = json.loads(shown.stdout)
        first = [hit.id for hit in expected(deployment, "one", 10)]
        assert found["mixed"] is mixed
        assert ([item["item"] for item in found["items"]] == first) is mixed


def test_what_is_withdrawn_is_not_popular(deployment: Deployment) -> None:
    """Neither for those who had it."""
    gone = f"item-{ITEMS}"
    deployment.produce([Click("one", gone, T0), Click("one", "item-3", T0 + 1)])
    deployment.consume_all()
    milvus = deployment.settings.milvus
    with Lookup(milvus, items_in_memory=ITEMS, consistency="Strong") as in_memory:
        in_memory.release()
        wait_until(lambda: in_memory.items_are_in_memory, "the items")
        assert gone in {hit.id for hit in in_memory.candidates("one", limit=5, mixed=True).items}
        announce_items(deployment.settings.kafka, [(gone, None)])
        with deployment.worker(), Lookup(milvus, consistency="Strong") as by_store:
            for lookup in (in_memory, by_store):
                for user in ("one", "nobody"):
                    wait_until(
                        lambda lookup=lookup, user=user: (  # type: ignore[misc]
                            gone
                            not in {
                                hit.id
                                for hit in lookup.candidates(user, limit=ITEMS, mixed=True).items
                            }
                        ),
                        "it to be gone",
                    )
                    # Ten items have no popularity: nothing tells them apart for who is not known.
                    found = lookup.candidates(user, limit=ITEMS - 11, mixed=True).items
                    rule = expected(deployment, user, ITEMS - 11, gone)
                    assert [hit.id for hit in found] == [hit.id for hit in rule]


def test_recent_clicks_are_audited(deployment: Deployment) -> None:
    """A row that differs in them alone is found."""
    deployment.produce(random_clicks(100))
    deployment.consume_all()
    index = InterestIndex(deployment.settings.milvus)
    name = deployment.release.name
    row = next(row for row in index.all_interests(name) if row.recent)
    changed = InterestRows(
        user_ids=[row.user_id],
        slots=np.array([row.slot]),
        weights=np.array([row.weight], np.float32),
        exemplars=[row.exemplar],
        updated_at=np.array([row.updated_at]),
        vectors=row.vector[None],
        recent=['["item-1"]'],
    )
    index.write_interests(name, changed, [], budget_s=30)
    index.close()
    assert deployment.audit().different == [interest_key(row.user_id, row.slot)]


def test_readers_go_over_to_a_release_with_a_mix(
    broker: LocalBroker, milvus_lite: LocalMilvusLite, tmp_path: Path
) -> None:
    """Workers fill both; answers are mixed from then on for those who ask, and not before."""
    with (
        deployed(broker.bootstrap_servers, milvus_lite.uri, tmp_path) as deployment,
        closing(InterestIndex(deployment.settings.milvus)) as index,
        Lookup(deployment.settings.milvus, consistency="Strong") as lookup,
    ):
        deployment.produce(random_clicks(100))
        with deployment.worker():
            deployment.wait_until_consumed()
            deployment.wait_until_filled()
            before = lookup.candidates("user-1", limit=5, mixed=True)
            assert not before.mixed
            assert before.items == lookup.candidates("user-1", limit=5).items
            release = mixed_release(tmp_path, f"{deployment.release.name}_mixed")
            publish(release, deployment.settings, index)
            switch(deployment.settings, index, release.name)
            wait_until(lambda: lookup.release().name == release.name, "the reader")
            deployment.release = release
            rule = expected(deployment, "user-1", 5)
            found = lookup.candidates("user-1", limit=5, mixed=True)
            assert (found.mixed, found.release) == (True, release.name)
            assert [hit.id for hit in found.items] == [hit.id for hit in rule]
        index.drop_release(release.name)
