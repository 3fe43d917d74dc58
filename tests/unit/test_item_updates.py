"""What is to be done about items, in which order, and what a successor goes on from."""

from __future__ import annotations

import json

import pytest

from consumers.encoding import WindowEncoder
from consumers.item_updates import ItemUpdates, ItemWork
from consumers.packed_window import pack
from consumers.served_releases import Served, ServedReleases
from consumers.window_store import WindowStore
from encoder.announced_items import AnnouncedItems
from encoder.item_record import ItemRecord
from encoder.mind_encoder import MindEncoder
from encoder.release import Release
from encoder.window import Window
from tests.small_items import release_with_fields

PARTITIONS = 2
RED, BLUE = json.dumps({"title": "red"}).encode(), json.dumps({"title": "blue"}).encode()


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return release_with_fields(tmp_path_factory.mktemp("release"), "one")


class Ground:
    """Users `u0` and so on, with a click on the item `new`, on each of two partitions."""

    def __init__(self, release: Release, users: int = 1, settle_s: float = 0.0) -> None:
        self.settle_s = settle_s
        self.items = AnnouncedItems()
        self.store = WindowStore()
        self.served = ServedReleases(
            None,  # type: ignore[arg-type]  # no release is loaded
            self.store.codes,
            threads=1,
            items=self.items,
            read_items=lambda: None,
        )
        encoder = WindowEncoder(MindEncoder(release), self.store.codes)
        self.one = Served(release, encoder, {}, {}, frozenset())
        self.served.add(self.one)
        for partition in range(PARTITIONS):
            self.store.add_partition(partition)
            for number in range(users):
                window = pack(Window(((1, "item-1"), (2, "new"))), self.store.codes)
                self.store.put(partition, {f"p{partition}u{number}": window})
            other = pack(Window(((1, "item-1"),)), self.store.codes)
            self.store.put(partition, {f"p{partition}other": other})
        self.now = 0.0
        self.begin()

    def begin(self) -> None:
        self.work = ItemUpdates(
            self.items,
            self.served,
            self.store,
            partitions=PARTITIONS,
            share=1.0,
            settle_s=self.settle_s,
        )
        windows = {p: dict(self.store.users(p)) for p in self.store.partitions}
        for partition in windows:  # none is owned when a worker begins
            self.store.drop_partition(partition)
        self.work.begin_release(self.one)
        for partition, of_partition in windows.items():
            self.store.add_partition(partition)
            self.store.put(partition, of_partition)

    def say(self, item_id: str, value: bytes | None, partition: int, offset: int) -> None:
        record = ItemRecord(item_id, partition, offset, value)
        self.items.apply([record], {partition: offset + 1})

    def all_of_it(self) -> tuple[list[ItemWork], list[str], list[str]]:
        """Until nothing but a report is left: all work, items written, users encoded."""
        done = []
        while (work := self.work.next(self.now)) is not None and not work.report:
            done.append(work)
            self.work.spent(self.now)
        if work is not None:
            done.append(work)
        written = [item for one in done for c in one.items.values() for item in c.item_ids]
        users = [user_id for one in done for user_id in one.user_ids]
        return done, written, users


def test_an_item_is_written_and_its_users_are_encoded_anew(release: Release) -> None:
    """Then how far that is, is reported, once."""
    ground = Ground(release)
    ground.work.begin_partitions(range(PARTITIONS), {}, ground.now)
    ground.say("new", RED, 0, 4)
    ground.say("unclicked", RED, 1, 2)
    done, written, users = ground.all_of_it()
    assert sorted(written) == ["new", "unclicked"]
    assert sorted(users) == ["p0u0", "p1u0"]
    assert not ground.work.busy
    assert done[-1].report == {("one", 0): {0: 5, 1: 3}, ("one", 1): {0: 5, 1: 3}}
    ground.work.reported(done[-1].report)
    ground.now += 3600.0
    assert ground.work.next(ground.now) is None


def test_only_the_owner_of_a_partition_writes_its_items(release: Release) -> None:
    """Users of all that is owned are encoded anew wherever the item lies."""
    ground = Ground(release)
    ground.store.drop_partition(1)
    ground.work.begin_partitions([0], {}, ground.now)
    ground.say("new", RED, 1, 0)
    ground.say("two", RED, 2, 0)  # the third partition of the items is the first one's
    _, written, users = ground.all_of_it()
    assert written == ["two"]
    assert users == ["p0u0"]


def test_a_successor_goes_on_from_the_report(release: Release) -> None:
    """Where there is none it does all, where a partition was not filled no user; nothing twice."""
    ground = Ground(release)
    ground.say("new", RED, 0, 4)
    ground.say("unclicked", RED, 0, 5)
    ground.begin()
    assert ground.work.begin_partitions([0], {("one", 0): {}}, ground.now) == {}
    assert ground.all_of_it()[1:] == (["new", "unclicked"], ["p0u0"])
    ground.begin()
    assert ground.work.begin_partitions([0], {("one", 0): {0: 5}}, ground.now) == {}
    assert ground.all_of_it()[1:] == (["unclicked"], [])
    ground.begin()
    ground.work.begin_partitions([0], {}, ground.now)
    assert ground.all_of_it()[1:] == (["new", "unclicked"], [])


def test_a_report_that_is_ahead_of_what_is_known_is_taken_back(release: Release) -> None:
    """Rows written now do not take into account what only the predecessor knew."""
    ground = Ground(release)
    ground.say("new", RED, 0, 4)
    ground.begin()
    behind = ground.work.begin_partitions([0], {("one", 0): {0: 9, 1: 0}}, ground.now)
    assert behind == {("one", 0): {0: 5, 1: 0}}


def test_what_was_not_written_is_done_again(release: Release) -> None:
    """Since the last report, in the order of the offsets."""
    ground = Ground(release, users=300)
    ground.work.begin_partitions(range(PARTITIONS), {}, ground.now)
    ground.say("new", RED, 0, 4)
    ground.say("more", RED, 0, 6)
    _, _, users = ground.all_of_it()
    assert len(users) == 600
    ground.say("new", BLUE, 0, 7)
    while not (work := ground.work.next(ground.now) or ItemWork()).user_ids:
        ground.work.spent(ground.now)
    assert len(work.user_ids) == 128
    ground.work.begin_again()
    _, written, users = ground.all_of_it()
    assert written == ["more", "new"]
    assert len(set(users)) == len(users) == 600


def test_what_a_predecessor_may_undo_is_done_again_before_it_is_reported(release: Release) -> None:
    """Since its last report, when its last write can no longer land; nothing more after that."""
    ground = Ground(release, settle_s=30.0)
    ground.store.drop_partition(1)
    ground.say("old", RED, 0, 3)
    ground.say("new", RED, 0, 4)
    ground.begin()
    ground.work.begin_partitions([0], {("one", 0): {0: 4}}, ground.now)
    assert ground.all_of_it()[1:] == (["new"], ["p0u0"])
    ground.say("later", BLUE, 1, 0)
    ground.now = 29.0
    done, written, users = ground.all_of_it()
    assert (written, users) == ([], [])  # partition 1 is not owned
    assert not any(one.report for one in done)
    assert ground.work.wait_s(ground.now) == 1.0
    ground.now = 30.0
    done, written, users = ground.all_of_it()
    assert (written, users) == (["new"], ["p0u0"])
    ground.now = 60.0
    (work,) = ground.all_of_it()[0]
    assert work.report == {("one", 0): {0: 5, 1: 1}}
    ground.work.reported(work.report)
    assert ground.work.wait_s(ground.now) is None


def test_users_are_encoded_in_small_chunks(release: Release) -> None:
    """A click waits for one of them at most."""
    ground = Ground(release, users=300)
    ground.work.begin_partitions(range(PARTITIONS), {}, ground.now)
    ground.say("new", RED, 0, 4)
    done, _, users = ground.all_of_it()
    assert max(len(one.user_ids) for one in done) == 128
    assert len(users) == 600


def test_rows_are_in_doubt_after_a_withdrawal(release: Release) -> None:
    """Until all users that the item counted for are encoded anew."""
    ground = Ground(release)
    ground.work.begin_partitions(range(PARTITIONS), {}, ground.now)
    ground.say("new", RED, 0, 4)
    ground.all_of_it()
    assert not ground.work.unsettled
    ground.say("new", None, 0, 5)
    ground.work.next(ground.now)
    assert ground.work.unsettled
    _, _, users = ground.all_of_it()
    assert sorted(users) == ["p0u0", "p1u0"]
    assert not ground.work.unsettled


def test_a_lost_partition_is_left_to_its_next_owner(release: Release) -> None:
    """Neither its users nor its items are touched any more."""
    ground = Ground(release)
    ground.work.begin_partitions(range(PARTITIONS), {}, ground.now)
    ground.say("new", RED, 0, 4)
    ground.store.drop_partition(0)
    ground.work.drop_partition(0)
    done, written, users = ground.all_of_it()
    assert written == []
    assert users == ["p1u0"]
    assert set(done[-1].report) == {("one", 1)}


def test_it_takes_no_more_than_its_share_of_the_time(release: Release) -> None:
    """After 10 ms at a quarter it rests for 30."""
    ground = Ground(release)
    work = ItemUpdates(
        ground.items, ground.served, ground.store, partitions=2, share=0.25, settle_s=0.0
    )
    work.begin_release(ground.one)
    work.begin_partitions(range(2), {}, 100.0)
    ground.say("new", RED, 0, 4)
    assert work.next(100.0) is not None
    work.spent(100.010)
    assert work.next(100.039) is None
    assert abs((work.wait_s(100.020) or 0.0) - 0.020) < 1e-9
    assert work.next(100.0401) is not None


def test_trained_items_are_written_only_if_they_were_withdrawn(release: Release) -> None:
    """A whole catalogue may be announced without writing it again."""
    ground = Ground(release)
    ground.work.begin_partitions(range(PARTITIONS), {}, ground.now)
    ground.say("item-1", RED, 0, 4)
    ground.say("item-2", None, 0, 5)
    assert ground.all_of_it()[1:] == (["item-2"], [])
    ground.say("item-2", RED, 0, 6)
    ground.say("item-1", BLUE, 0, 7)
    _, written, users = ground.all_of_it()
    assert (written, users) == (["item-2"], [])


def test_trained_items_are_written_by_a_successor(release: Release) -> None:
    """Its predecessor may have withdrawn them for a record that nobody else has seen."""
    ground = Ground(release, settle_s=30.0)
    ground.say("item-1", RED, 0, 4)
    ground.say("item-2", RED, 0, 5)
    ground.begin()
    ground.work.begin_partitions([0], {("one", 0): {0: 5}}, ground.now)
    assert ground.all_of_it()[1] == ["item-2"]
    ground.now = 30.0
    assert ground.all_of_it()[1] == ["item-2"]  # the predecessor's write may have come late
