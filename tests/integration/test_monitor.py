"""The monitor as a process, beside a worker, on a real broker and a real store."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from consumers.health import Health
from deploy.local_broker import LocalBroker
from deploy.local_milvus import LocalMilvusLite
from deploy.loopback import free_ports
from encoder.click import Click
from encoder.interest_index import InterestIndex, ReleaseInUse
from encoder.item_fields import FieldValue
from encoder.item_topic import announce_items
from encoder.kafka_client import admin_client
from encoder.mind_encoder import MindEncoder
from encoder.release import Release, open_release
from encoder.release_store import store_beside
from encoder.release_topic import ReleaseFollower, read_releases
from encoder.settings import Settings
from encoder.topics import create_topics
from encoder.window import Window
from encoder.windows_topic import read_windows
from mindstream.drift import DRIFT_FILE, coverage, encode, measure_drift, stored_drift
from mindstream.environment import child_environment
from mindstream.live_release import LiveRelease
from mindstream.monitor import Monitor
from mindstream.monitor_metrics import MonitorMetrics
from mindstream.recall import prequential_recall
from mindstream.release_switch import switch
from tests.deployment import ITEMS, T0, Deployment, deployed, wait_until
from tests.lookup_service import get
from tests.processes import listening
from tests.small_items import field_vectors, release_with_fields

Values = dict[tuple[str, ...], float]


@contextmanager
def monitor(settings: Settings, **environment: str) -> Iterator[tuple[str, int]]:
    """The address and process id of a monitor that measures often, and ends well afterwards."""
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-m", "mindstream", "monitor"],
        env={
            **child_environment(settings),
            "MINDSTREAM_MONITOR__HTTP_PORT": str(port),
            "MINDSTREAM_MONITOR__INTERVAL_S": "0.2",
            **environment,
        },
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: process.poll() is not None or get(url, "/livez")[0] == 200, "a monitor")
        assert process.poll() is None
        yield url, process.pid
    finally:
        process.terminate()
        assert process.wait(20) == 0


def values(url: str) -> Values:
    """Its metrics by name and values of labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(get(url, "/metrics")[1])
        for sample in family.samples
    }


def observed(url: str) -> float:
    return values(url)["mindstream_observed_clicks_total",]


def judged(url: str) -> float:
    return values(url)["mindstream_recall_clicks",]


def orderly_clicks(n: int, *, since: int, seed: int) -> list[Click]:
    """Each at a time of its own, users in turn, now and then on an item that nobody knows."""
    rng = random.Random(seed)  # noqa: S311  nothing secret
    return [
        Click(f"user-{number % 20}", f"item-{rng.randint(1, ITEMS + 6)}", T0 + since + number)
        for number in range(n)
    ]


def test_metrics_are_of_the_release_in_use_and_of_the_newest_clicks(
    deployment: Deployment,
) -> None:
    """Recall is that of a replay; the rest is that of the windows; all follow the pointer."""
    settings, old = deployment.settings, deployment.release
    history = orderly_clicks(100, since=0, seed=1)
    live = orderly_clicks(120, since=1000, seed=2)
    index = InterestIndex(settings.milvus)
    with monitor(settings) as (url, pid):
        wait_until(lambda: "a release in use" in get(url, "/readyz")[1], "a first look")
        assert get(url, "/readyz")[0] == 503
        with deployment.worker():
            deployment.produce(history)
            deployment.wait_until_consumed()
            wait_until(lambda: get(url, "/readyz")[0] == 200, "a first measurement")
            wait_until(lambda: values(url)["mindstream_observed_users",] == 20, "the users")
            wait_until(lambda: observed(url) == 100, "clicks that came after the first look")
            deployment.produce(live)
            deployment.wait_until_consumed()
            wait_until(lambda: observed(url) == 220, "all clicks")
            wait_until(
                lambda: values(url)["mindstream_recall_clicks",] == 200, "all of them judged"
            )
            found = values(url)
            assert_as_the_windows_say(found, deployment, old.name)
            assert found["mindstream_recall_ratio", "20"] == pytest.approx(
                prequential_recall(
                    MindEncoder(old), history[:20], [*history[20:], *live], length=8, n=20
                )
            )
            assert ("mindstream_switch_changed_ratio", old.name, "cold") not in found
            assert listening(pid) == {"127.0.0.1"}

            new = deployment.publish(f"{old.name}_b", seed=7)
            switch(settings, index, new.name)
            changed = ("mindstream_switch_changed_ratio", new.name, "cold")
            wait_until(lambda: changed in values(url), "the other release")
            wait_until(
                lambda: values(url)["mindstream_recall_clicks",] == 200, "all of them judged"
            )
            found = values(url)
            assert ("mindstream_measured_release_info", old.name) not in found
            assert_as_the_windows_say(found, deployment, new.name)
            assert found["mindstream_recall_ratio", "20"] == pytest.approx(
                prequential_recall(
                    MindEncoder(new), history[:20], [*history[20:], *live], length=8, n=20
                )
            )
            announced = read_releases(settings.kafka).announcement(new.name)
            assert announced is not None
            drift = stored_drift(announced.url)
            assert drift is not None
            assert found[changed] == drift.changed
            cosine = found["mindstream_switch_item_cosine", new.name, "cold"]
            assert cosine == drift.item_cosine
    index.drop_release(f"{old.name}_b")
    index.close()


def fill(deployment: Deployment, clicks: list[Click]) -> None:
    """Until readers read the release."""
    index = InterestIndex(deployment.settings.milvus)
    in_use = ReleaseInUse(deployment.release.name, 3)
    with deployment.worker():
        deployment.produce(clicks)
        deployment.wait_until_consumed()
        wait_until(lambda: index.release_in_use() == in_use, "a first release")
    index.close()


def assert_as_the_windows_say(found: Values, deployment: Deployment, release: str) -> None:
    """Collapse and coverage are those of the windows now on their topic."""
    folder = deployment.folder / "releases" / release
    encoder = MindEncoder(open_release(folder))
    batch = encode(encoder, list(stored_windows(deployment).values()))
    assert found["mindstream_measured_release_info", release] == 1
    assert found["mindstream_interest_cosine",] == pytest.approx(batch.mean_cosine(), abs=1e-5)
    assert found["mindstream_coverage_ratio",] == coverage(batch, encoder.release.items[1:])


def test_a_start_takes_windows_and_not_all_clicks(deployment: Deployment) -> None:
    """What lies there is what was known before; later clicks are predicted from it."""
    settings = deployment.settings
    history = orderly_clicks(100, since=0, seed=1)
    live = orderly_clicks(40, since=1000, seed=2)
    with deployment.worker():
        deployment.produce(history)
        deployment.wait_until_consumed()
        with monitor(settings, MINDSTREAM_MONITOR__CLICKS="25") as (url, _):
            wait_until(lambda: get(url, "/readyz")[0] == 200, "a first measurement")
            assert values(url)["mindstream_observed_users",] == 20
            assert observed(url) == 0
            deployment.produce(live)
            deployment.wait_until_consumed()
            wait_until(lambda: observed(url) == 40, "all clicks")
            wait_until(lambda: judged(url) == 25, "the newest 25")
            unknown = values(url)["mindstream_unknown_clicks_ratio",]
            newest = live[-25:]
            expected = sum(int(click.item_id[5:]) > ITEMS for click in newest) / 25
            # Windows come partition by partition, so which clicks are the newest is not certain.
            assert unknown == pytest.approx(expected, abs=0.2)


def test_it_begins_again_where_the_windows_topic_is_another(deployment: Deployment) -> None:
    """A topic that was deleted and created again is read from its beginning, without a restart."""
    settings, metrics = deployment.settings, MonitorMetrics()
    fill(deployment, orderly_clicks(60, since=0, seed=1))
    index, releases = InterestIndex(settings.milvus), ReleaseFollower(settings.kafka)
    health = Health(stalled_after_s=1000)
    monitor = Monitor(settings, index, releases, deployment.partitions, metrics, health)

    def users() -> float:
        monitor.turn()
        (family,) = metrics.users.collect()
        return float(family.samples[0].value)

    assert users() == 20
    assert health.ready() == (True, "ready")
    with admin_client(settings.kafka) as admin:
        admin.delete_topics([settings.kafka.windows_topic])
        wait_until(lambda: settings.kafka.windows_topic not in set(admin.list_topics()), "it to go")
    create_topics(settings, partitions=deployment.partitions, replication=1)
    assert users() == 0
    releases.close()
    index.close()


def test_a_drift_that_cannot_be_read_does_not_end_it(deployment: Deployment) -> None:
    """Recall can be measured without; a publisher of another version may have written it."""
    settings = deployment.settings
    fill(deployment, orderly_clicks(60, since=0, seed=1))
    (announced,) = read_releases(settings.kafka).announced
    store_beside(announced.url, DRIFT_FILE, "{}")
    index, releases = InterestIndex(settings.milvus), ReleaseFollower(settings.kafka)
    metrics, health = MonitorMetrics(), Health(stalled_after_s=1000)
    with structlog.testing.capture_logs() as logs:
        Monitor(settings, index, releases, deployment.partitions, metrics, health).turn()
    assert health.ready() == (True, "ready")
    (warned,) = (entry for entry in logs if entry["event"] == "monitor.drift_not_read")
    assert "drift.json is of another version" in warned["error"]
    releases.close()
    index.close()


def test_announced_items_count_as_a_look_up_finds_them(
    broker: LocalBroker, milvus_lite: LocalMilvusLite, tmp_path: Path
) -> None:
    """In windows, in recall and in coverage; a withdrawn one is found no longer."""
    servers, uri = broker.bootstrap_servers, milvus_lite.uri
    with deployed(servers, uri, tmp_path, release=release_with_fields) as deployment:
        settings, release = deployment.settings, deployment.release
        history = orderly_clicks(100, since=0, seed=1)
        live = orderly_clicks(120, since=1000, seed=2)
        fill(deployment, history)
        index, releases = InterestIndex(settings.milvus), ReleaseFollower(settings.kafka)
        metrics, health = MonitorMetrics(), Health(stalled_after_s=1000)
        monitor = Monitor(settings, index, releases, deployment.partitions, metrics, health)
        monitor.turn()
        said = {f"item-{ITEMS + 1 + n}": fields for n, fields in enumerate(NEW)}
        with deployment.worker():
            say(deployment, said)
            wait_until(
                lambda: len(index.item_vectors(release.name, list(said), "Strong")) == len(said),
                "the items",
            )
            deployment.produce(live)
            deployment.wait_until_consumed()
            monitor.turn()
            whole = with_items(release, said)
            found = figures(metrics)
            unknown = sum(int(click.item_id[5:]) > ITEMS + len(said) for click in live)
            assert found["mindstream_unknown_clicks_ratio"] == pytest.approx(unknown / len(live))
            assert found["mindstream_recall_ratio"] == pytest.approx(
                prequential_recall(whole, history, live, length=8, n=20)
            )
            batch = encode(whole, list(stored_windows(deployment).values()))
            items = whole.release.items[1:]
            assert found["mindstream_coverage_ratio"] == pytest.approx(coverage(batch, items))
            assert found["mindstream_interest_cosine"] == pytest.approx(batch.mean_cosine())

            gone = [*list(said)[:1], "item-7"]
            say(deployment, dict.fromkeys(gone))
            wait_until(
                lambda: not index.item_vectors(release.name, gone, "Strong"), "the withdrawals"
            )
            known = LiveRelease(MindEncoder(release))
            known.follow(index.items)
            kept = sorted({*release.item_ids, *said} - set(gone))
            assert sorted(known.retrieved()) == kept
            assert len(known) == len(kept)
            places = known.positions([*kept, *gone])
            assert (places[: len(kept)] >= 0).all()
            assert (places[len(kept) :] == -1).all()
            stored = index.item_vectors(release.name, kept, "Strong")
            expected = np.stack([stored[item_id] for item_id in kept])
            np.testing.assert_array_equal(known.vectors(places[: len(kept)]), expected)
            near = known.nearest(batch, len(kept) + 5)
            assert set(np.unique(near)) == set(places[: len(kept)].tolist())
            again = LiveRelease(MindEncoder(release))
            again.follow(index.items)
            drift = measure_drift(known, again, list(stored_windows(deployment).values()))
            assert (drift.changed, drift.shared_items) == (0.0, len(kept))
        releases.close()
        index.close()


NEW: list[dict[str, FieldValue]] = [
    {"title": "red cup"},
    {"title": "blue", "brand": "acme"},
    {"price": 3.5},
]


def say(deployment: Deployment, items: Mapping[str, Mapping[str, FieldValue] | None]) -> None:
    """Announce items; those without fields are withdrawn."""
    records = [(one, None if f is None else json.dumps(f).encode()) for one, f in items.items()]
    announce_items(deployment.settings.kafka, records)


def with_items(release: Release, items: Mapping[str, Mapping[str, FieldValue]]) -> MindEncoder:
    """An encoder of the release as if it had been trained with these items' vectors."""
    made_of = field_vectors()
    table = np.stack([*release.items, *(made_of.vector(fields) for fields in items.values())])
    return MindEncoder(replace(release, items=table, item_ids=[*release.item_ids, *items]))


def figures(metrics: MonitorMetrics) -> dict[str, float]:
    """The metrics by name; recall is among 20."""
    return {
        sample.name: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.labels.get("n", "20") == "20"
    }


def stored_windows(deployment: Deployment) -> dict[str, Window]:
    """Those on the windows topic."""
    read = read_windows(deployment.settings.kafka, range(deployment.partitions), timeout_s=30)
    return {user: window for _, user, window in read if window is not None}
