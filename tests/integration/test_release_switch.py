"""From one release to the next under clicks, on a real broker and a real store."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import structlog
from structlog.typing import EventDict

from consumers import release_watch
from consumers.click_topic import ClickTopic
from consumers.transactions import Outdated
from consumers.update_loop import Step
from encoder.errors import Misconfigured, Unavailable
from encoder.interest_index import InterestIndex, ReleaseInUse
from encoder.mind_encoder import MindEncoder
from encoder.release import Release, ReleaseError
from encoder.release_store import read_beside
from encoder.release_topic import read_releases, withdraw
from encoder.settings import Settings
from lookup import Lookup
from mindstream import release_switch
from mindstream.audit import audit_store
from mindstream.certificate import CERTIFICATE_FILE, Certificate, NotFilled, certify
from mindstream.drift import stored_drift
from mindstream.release_drift import drift_of
from mindstream.release_switch import announced_release, prune, rollback, switch
from tests.deployment import Deployment, random_clicks, wait_until


@pytest.fixture
def index(deployment: Deployment) -> Iterator[InterestIndex]:
    """The deployment's store; collections of later releases go at the end."""
    found = InterestIndex(deployment.settings.milvus)
    yield found
    for one in read_releases(deployment.settings.kafka).announced:
        if one.release != deployment.release.name:
            found.drop_release(one.release)
    found.close()


def short(settings: Settings, switch_timeout_s: float) -> Settings:
    """Settings with which a publisher does not wait long."""
    releases = settings.releases.model_copy(update={"switch_timeout_s": switch_timeout_s})
    return settings.model_copy(update={"releases": releases})


def has(logs: list[EventDict], event: str) -> bool:
    """Whether this was logged."""
    return any(entry["event"] == event for entry in logs)


def assert_kept_up_to_date(deployment: Deployment, index: InterestIndex, release: Release) -> None:
    found = audit_store(deployment.settings, index, MindEncoder(release))
    assert found.differences == 0, f"{release.name}: {found.report()}"
    assert found.rows > 0


def test_readers_go_over_to_a_release_under_clicks_and_back(
    deployment: Deployment, index: InterestIndex
) -> None:
    """Both collections are those of a plain fold, before and after; the proof lies beside it."""
    settings, old = deployment.settings, deployment.release
    with deployment.worker():
        deployment.produce(random_clicks(400))
        deployment.wait_until_consumed()
        wait_until(lambda: index.release_in_use() == ReleaseInUse(old.name, 3), "a first release")
        new = deployment.publish(f"{old.name}_b", seed=7)
        deployment.produce(random_clicks(200, seed=3))
        certificate = switch(settings, index, new.name)
        assert index.release_in_use() == ReleaseInUse(new.name, 3)
        deployment.produce(random_clicks(200, seed=4))
        deployment.wait_until_consumed()
        assert_kept_up_to_date(deployment, index, new)
        assert_kept_up_to_date(deployment, index, old)

        back = rollback(settings, index)
        assert back.release == old.name
        assert index.release_in_use() == ReleaseInUse(old.name, 3)
    assert certificate.sampled == certificate.users > 10
    assert certificate.moving == 0
    announced = read_releases(settings.kafka).announcement(new.name)
    assert announced is not None
    stored = read_beside(announced.url, CERTIFICATE_FILE)
    assert stored is not None
    assert Certificate.model_validate_json(stored) == certificate
    assert json.loads(stored)["files"]["encoder.onnx"] == new.manifest.files["encoder.onnx"].sha256


def test_what_a_switch_changed_lies_beside_the_release(
    deployment: Deployment, index: InterestIndex
) -> None:
    """Of the users compared, from the release readers left; told at any time, and measured anew."""
    settings, old = deployment.settings, deployment.release
    told: list[str] = []
    with deployment.worker():
        deployment.produce(random_clicks(400))
        deployment.wait_until_consumed()
        switch(settings, index, old.name, tell=told.append)
        assert told == []  # readers left none
        new = deployment.publish(f"{old.name}_b", seed=7)
        certificate = switch(settings, index, new.name, tell=told.append)
        switch(settings, index, new.name, tell=told.append)  # as after it was killed
    known = read_releases(settings.kafka)
    announced = known.announcement(new.name)
    assert announced is not None
    drift = stored_drift(announced.url)
    assert drift is not None
    assert (drift.before, drift.release, drift.warm) == (old.name, new.name, False)
    assert drift.users == certificate.sampled
    assert drift.shared_items == new.manifest.items
    assert drift.changed > 0.5  # two untrained models have nothing in common
    assert abs(drift.item_cosine) < 0.2
    assert 0 < drift.coverage <= 1
    assert len(told) == 2
    assert told[1] == str(drift)

    fetch = partial(announced_release, settings, known)
    assert drift_of(settings, index.items, known, None, new.name, fetch) == drift
    anew = drift_of(settings, index.items, known, new.name, new.name, fetch, anew=True)
    assert anew.model_copy(update={"at": drift.at}) == drift  # it draws all users, too
    same = drift_of(settings, index.items, known, new.name, new.name, fetch, before=new.name)
    assert (same.changed, same.item_cosine) == (0.0, 1.0)
    with pytest.raises(Misconfigured, match=f"no release before {old.name}; name one with"):
        drift_of(settings, index.items, known, old.name, new.name, fetch, anew=True)


def test_a_switch_does_not_fail_where_what_it_changed_cannot_be_told(
    deployment: Deployment, index: InterestIndex
) -> None:
    """The release that readers left is damaged: they have gone over all the same."""
    settings, old = deployment.settings, deployment.release
    with structlog.testing.capture_logs() as logs, deployment.worker():
        deployment.produce(random_clicks(100))
        deployment.wait_until_consumed()
        wait_until(lambda: index.release_in_use() == ReleaseInUse(old.name, 3), "a first release")
        new = deployment.publish(f"{old.name}_b", seed=7)
        (deployment.folder / "releases" / old.name / "items.npy").unlink()
        switch(settings, index, new.name)
    assert index.release_in_use() == ReleaseInUse(new.name, 3)
    (warned,) = (entry for entry in logs if entry["event"] == "release.drift_not_measured")
    assert "items.npy" in warned["error"]


def test_what_was_filled_is_not_filled_again(deployment: Deployment, index: InterestIndex) -> None:
    """A worker that dies between two partitions leaves the first one to its successor as done."""
    settings, old = deployment.settings, deployment.release
    deployment.produce(random_clicks(400))
    deployment.consume_all()
    new = deployment.publish(f"{old.name}_b", seed=7)

    def filled() -> set[int]:
        known = read_releases(settings.kafka).filled
        return {partition for release, partition in known if release == new.name}

    slow = settings.worker.model_copy(update={"backfill_share": 0.002})
    hasty, deployment.settings = settings, settings.model_copy(update={"worker": slow})
    with deployment.worker():
        wait_until(lambda: bool(filled()), "a first partition")
    before = filled()
    assert 0 < len(before) < deployment.partitions
    deployment.settings = hasty
    with structlog.testing.capture_logs() as logs, deployment.worker():
        switch(settings, index, new.name)
    again = {entry["partition"] for entry in logs if entry["event"] == "release.filled"}
    assert again == set(range(deployment.partitions)) - before
    assert_kept_up_to_date(deployment, index, new)


def test_a_partition_that_moves_while_it_is_filled_is_filled_by_its_next_owner(
    deployment: Deployment, index: InterestIndex
) -> None:
    """The second worker takes partitions over that the first was at; all end up filled."""
    settings = deployment.settings
    deployment.produce(random_clicks(600))
    deployment.consume_all()
    slow = settings.worker.model_copy(update={"backfill_share": 0.01})
    deployment.settings = settings.model_copy(update={"worker": slow})
    new = deployment.publish(f"{deployment.release.name}_b", seed=7)
    first = deployment.worker_process(instance="one")
    wait_until(lambda: "partitions.taken" in deployment.worker_log(), "the first worker")
    second = deployment.worker_process(instance="two")
    try:
        deployment.produce(random_clicks(200, seed=2))
        switch(settings, index, new.name)
        deployment.wait_until_consumed()
    finally:
        for process in (first, second):
            process.terminate()
        codes = [process.wait(60) for process in (first, second)]
    assert codes == [0, 0], deployment.worker_log()
    assert_kept_up_to_date(deployment, index, new)
    assert_kept_up_to_date(deployment, index, deployment.release)


def test_a_worker_that_crashes_while_it_fills_leaves_nothing_wrong(
    deployment: Deployment, index: InterestIndex
) -> None:
    """Rows of clicks that it did not commit are put right in the release that joins, too."""
    settings = deployment.settings
    deployment.produce(random_clicks(300))
    deployment.consume_all()
    new = deployment.publish(f"{deployment.release.name}_b", seed=7)
    steps: list[Step] = []

    def crash(step: Step) -> None:
        steps.append(step)
        if steps.count("written") == 3:
            raise RuntimeError("crash")

    deployment.produce(random_clicks(300, seed=5))
    with pytest.raises(RuntimeError, match="crash"), deployment.worker(crash):
        wait_until(lambda: steps.count("written") >= 3, "a crash")
    with deployment.worker():
        switch(settings, index, new.name)
        deployment.wait_until_consumed()
    assert_kept_up_to_date(deployment, index, new)
    assert_kept_up_to_date(deployment, index, deployment.release)


def test_a_damaged_release_is_not_served_until_it_is_mended(
    deployment: Deployment, index: InterestIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers say which file and serve on; so does the publisher; readers stay where they are."""
    monkeypatch.setattr(release_watch, "_RETRY_AFTER_S", 1.0)
    settings, old = deployment.settings, deployment.release
    deployment.produce(random_clicks(100))
    deployment.consume_all()
    with structlog.testing.capture_logs() as logs, deployment.worker():
        wait_until(lambda: has(logs, "partitions.taken"), "a worker")
        new = deployment.publish(f"{old.name}_b", seed=7)
        graph = deployment.folder / "releases" / new.name / "encoder.onnx"
        whole = graph.read_bytes()
        graph.write_bytes(whole[:-1] + b"\0")
        with pytest.raises(ReleaseError, match=r"encoder\.onnx"):
            switch(settings, index, new.name)
        assert index.release_in_use() == ReleaseInUse(old.name, 3)
        deployment.produce(random_clicks(100, seed=1))
        deployment.wait_until_consumed()
        graph.write_bytes(whole)
        switch(settings, index, new.name)
    assert index.release_in_use() == ReleaseInUse(new.name, 3)
    assert_kept_up_to_date(deployment, index, old)
    assert_kept_up_to_date(deployment, index, new)


def test_a_worker_that_cannot_serve_a_release_says_which_file(
    deployment: Deployment, index: InterestIndex
) -> None:
    """It starts on the release in use all the same, and takes back its reports of the other."""
    settings, old = deployment.settings, deployment.release
    deployment.produce(random_clicks(100))
    new = deployment.publish(f"{old.name}_b", seed=7)
    with deployment.worker():
        switch(settings, index, old.name)
        switch(settings, index, new.name)
        rollback(settings, index)
    (deployment.folder / "releases" / new.name / "items.npy").unlink()
    with structlog.testing.capture_logs() as logs, deployment.worker():
        wait_until(lambda: has(logs, "partitions.taken"), "a worker")
        with pytest.raises(Misconfigured, match=r"items\.npy"):
            switch(settings, index, new.name)
    (refused, *_) = (entry for entry in logs if entry["event"] == "release.not_loaded")
    assert "items.npy" in refused["error"]
    assert {release for release, _ in read_releases(settings.kafka).filled} == {old.name}


def test_a_publisher_does_not_wait_for_ever(deployment: Deployment, index: InterestIndex) -> None:
    """Without workers nothing is filled: it names the partitions, and what to do later."""
    settings = short(deployment.settings, 1.0)
    with pytest.raises(Unavailable, match=r"on partitions \[0, 1, 2, 3\] within") as raised:
        switch(settings, index, deployment.release.name)
    assert f"mindstream release use {deployment.release.name}" in str(raised.value)


def test_readers_stay_where_a_row_is_missing_or_another(
    deployment: Deployment, index: InterestIndex
) -> None:
    """A user whose rows are not those of the window is found and named."""
    settings, release = deployment.settings, deployment.release
    deployment.produce(random_clicks(300))
    deployment.consume_all()

    def proof(within_s: float = 1.0) -> Certificate:
        return certify(
            settings,
            index,
            release,
            partitions=deployment.partitions,
            sample=1000,
            within_s=within_s,
        )

    first, second = proof(), proof()
    assert first.rows_sha256 == second.rows_sha256
    assert first.rows == first.rows_expected
    index.forget(["user-3"], [release.name], budget_s=10)
    with pytest.raises(NotFilled, match=r"1 users drawn differ, such as 'user-3'"):
        proof()


def test_what_readers_left_is_dropped_after_the_grace_time(
    deployment: Deployment, index: InterestIndex
) -> None:
    """Not before; workers let go of it first and serve on; there is no way back then."""
    settings, old = deployment.settings, deployment.release
    with deployment.worker():
        deployment.produce(random_clicks(200))
        deployment.wait_until_consumed()
        wait_until(lambda: index.release_in_use() == ReleaseInUse(old.name, 3), "a first release")
        new = deployment.publish(f"{old.name}_b", seed=7)
        switch(settings, index, new.name)
        assert prune(settings, index, grace_s=3600) == []
        with Lookup(settings.milvus, consistency="Strong") as client:
            assert client.interests("user-1").release == new.name
            assert prune(settings, index, grace_s=0) == [old.name]
        assert not index.has_release(old.name)
        deployment.produce(random_clicks(100, seed=9))
        deployment.wait_until_consumed()
        with pytest.raises(Misconfigured, match="no release to go back to"):
            rollback(settings, index)
    assert read_releases(settings.kafka).filled == {
        (new.name, partition) for partition in range(deployment.partitions)
    }
    assert_kept_up_to_date(deployment, index, new)


def test_reports_are_taken_back_though_a_commit_of_it_is_refused(
    deployment: Deployment, index: InterestIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another worker joins meanwhile, and the partition stays where it is."""
    settings, old = deployment.settings, deployment.release
    commit, refused = ClickTopic.commit, threading.Event()

    def refuse_once(topic: ClickTopic, *args: Any) -> None:
        if not all(args[-1].values()) and not refused.is_set():
            refused.set()
            raise Outdated("refused")
        commit(topic, *args)

    monkeypatch.setattr(ClickTopic, "commit", refuse_once)
    with deployment.worker():
        deployment.produce(random_clicks(200))
        wait_until(lambda: index.release_in_use() == ReleaseInUse(old.name, 3), "a first release")
        new = deployment.publish(f"{old.name}_b", seed=7)
        switch(settings, index, new.name)
        withdraw(settings.kafka, old.name)
        wait_until(refused.is_set, "a worker that lets go of it")
        expected = {(new.name, partition) for partition in range(deployment.partitions)}
        wait_until(lambda: read_releases(settings.kafka).filled == expected, "reports")


def test_what_was_withdrawn_is_dropped_by_the_next_run(
    deployment: Deployment, index: InterestIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the one that withdrew it died before it dropped the collections."""
    settings, old = deployment.settings, deployment.release
    deployment.produce(random_clicks(100))
    with deployment.worker():
        deployment.wait_until_consumed()
        wait_until(lambda: index.release_in_use() == ReleaseInUse(old.name, 3), "a first release")
        new = deployment.publish(f"{old.name}_b", seed=7)
        switch(settings, index, new.name)
        with monkeypatch.context() as patch:
            patch.setattr(index, "drop_release", killed)
            with pytest.raises(KeyboardInterrupt):
                prune(settings, index, grace_s=0)
        assert index.has_release(old.name)
        assert prune(settings, index, grace_s=3600) == [old.name]
        assert not index.has_release(old.name)
        assert prune(settings, index, grace_s=0) == []


@pytest.mark.parametrize("step", ["store_beside", "note_use"])
def test_a_publisher_that_dies_at_the_pointer_is_repeated(
    deployment: Deployment, index: InterestIndex, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Before it, readers stay; after it, they have gone over. Either way there is a way back."""
    settings, old = deployment.settings, deployment.release
    deployment.produce(random_clicks(100))
    with deployment.worker():
        deployment.wait_until_consumed()
        wait_until(lambda: index.release_in_use() == ReleaseInUse(old.name, 3), "a first release")
        new = deployment.publish(f"{old.name}_b", seed=7)
        moved = step == "note_use"
        with monkeypatch.context() as patch:
            # Of the two notes, the first is of the release that readers leave.
            patch.setattr(release_switch, step, killed_at(new.name, getattr(release_switch, step)))
            with pytest.raises(KeyboardInterrupt):
                switch(settings, index, new.name)
        now = index.release_in_use()
        assert now is not None
        assert now.name == (new.name if moved else old.name)
        switch(settings, index, new.name)
        assert index.release_in_use() == ReleaseInUse(new.name, 3)
        assert rollback(settings, index).release == old.name


def test_a_second_rollback_does_not_go_to_the_release_that_was_left(
    deployment: Deployment, index: InterestIndex
) -> None:
    """It says which there are; by name there is a way, and after that one back again."""
    settings, first = deployment.settings, deployment.release.name
    with deployment.worker():
        deployment.produce(random_clicks(100))
        deployment.wait_until_consumed()
        wait_until(lambda: index.release_in_use() == ReleaseInUse(first, 3), "a first release")
        second, third = (deployment.publish(f"{first}_{n}", seed=7).name for n in "bc")
        switch(settings, index, second)
        assert rollback(settings, index).release == first
        with pytest.raises(Misconfigured, match=f"at release {first} already, from {second}") as it:
            rollback(settings, index)
        assert f"kept: {second}, {third};" in str(it.value)
        switch(settings, index, first)  # it is there already: that changes nothing
        with pytest.raises(Misconfigured, match=f"at release {first} already, from {second}"):
            rollback(settings, index)
        assert index.release_in_use() == ReleaseInUse(first, 3)
        switch(settings, index, third)
        assert rollback(settings, index).release == first  # not the one that was left before
        with pytest.raises(Misconfigured, match=f"from {third}"):
            rollback(settings, index)
        switch(settings, index, second)
        assert rollback(settings, index).release == first
        switch(settings, index, second)
        switch(settings, index, third)
        assert rollback(settings, index).release == second  # since it was asked for by name


@pytest.mark.parametrize("step", ["note_use", "use_release"])
def test_a_rollback_that_dies_is_repeated(
    deployment: Deployment, index: InterestIndex, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """At either of its steps; and where it came to its end, readers stay there."""
    settings, old = deployment.settings, deployment.release
    with deployment.worker():
        deployment.produce(random_clicks(100))
        deployment.wait_until_consumed()
        wait_until(lambda: index.release_in_use() == ReleaseInUse(old.name, 3), "a first release")
        new = deployment.publish(f"{old.name}_b", seed=7)
        switch(settings, index, new.name)
        with monkeypatch.context() as patch:
            patch.setattr(release_switch if step == "note_use" else index, step, killed)
            with pytest.raises(KeyboardInterrupt):
                rollback(settings, index)
        assert index.release_in_use() == ReleaseInUse(new.name, 3)
        assert rollback(settings, index).release == old.name
        with pytest.raises(Misconfigured, match="already"):
            rollback(settings, index)
    assert index.release_in_use() == ReleaseInUse(old.name, 3)


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def killed_at(release: str, call: Callable[..., None]) -> Callable[..., None]:
    """A call that does not come to be made for this release."""

    def run(*args: object) -> None:
        if release in repr(args):
            raise KeyboardInterrupt
        call(*args)

    return run


def test_a_reader_whose_release_was_dropped_reads_the_pointer_again(
    deployment: Deployment, index: InterestIndex
) -> None:
    """It remembers the release in use for a moment, and the collections may be gone by then."""
    settings, old = deployment.settings, deployment.release
    deployment.produce(random_clicks(200))
    with deployment.worker():
        deployment.wait_until_consumed()
        new = deployment.publish(f"{old.name}_b", seed=7)
        with Lookup(settings.milvus, consistency="Strong") as client:
            assert client.interests("user-1").release == old.name
            switch(settings, index, new.name)
            index.drop_release(old.name)
            remembered = ReleaseInUse(old.name, 3), time.monotonic() + 3600.0
            client._pointer._known = remembered  # as if it had been read this instant
            assert client.interests("user-1").release == new.name
            client._pointer._known = remembered
            found = client.candidates("user-1", limit=5)
            assert (found.release, len(found.items)) == (new.name, 5)
            client._pointer._known = remembered
            assert client.audience("item-1", limit=2).release == new.name


def test_two_releases_announced_in_a_row_both_come_up(
    deployment: Deployment, index: InterestIndex
) -> None:
    """Each is filled; readers go where each publisher points them, the last one last."""
    settings, old = deployment.settings, deployment.release
    deployment.produce(random_clicks(200))
    with deployment.worker():
        deployment.wait_until_consumed()
        names = [deployment.publish(f"{old.name}_{n}", seed=n).name for n in (7, 8)]
        done: list[str] = []

        def go(name: str) -> None:
            store = InterestIndex(settings.milvus)
            switch(settings, store, name)
            store.close()
            done.append(name)

        threads = [threading.Thread(target=go, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert sorted(done) == names
        in_use = index.release_in_use()
        assert in_use is not None
        assert in_use.name in names
        log = read_releases(settings.kafka)
        assert {release for release, _ in log.filled} == {old.name, *names}
