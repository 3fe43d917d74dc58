"""The window store against plain dictionaries of windows, and through the topic it is kept on."""

import uuid
from collections.abc import Iterator

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from consumers.click_topic import ClickTopic
from consumers.packed_window import EMPTY, pack, unpack
from consumers.window_store import WindowStore
from deploy.local_broker import LocalBroker
from encoder.settings import Settings, load_settings
from encoder.topics import create_topics
from encoder.window import Window, to_wire, window_of
from encoder.windows_topic import WindowRecords
from tests.deployment import wait_until

PARTITIONS = 3
USERS = ["a", "b", "ü"]  # the same ones on every partition, so that a leak would show

clicks = st.tuples(st.integers(1, 50), st.sampled_from(["x", "y", "é"]))
partitions = st.integers(0, PARTITIONS - 1)
users = st.sampled_from(USERS)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    drawn = draw(st.lists(clicks, max_size=6))
    return window_of(drawn, length=4, erased_at_ms=draw(st.integers(0, 20)))


class WindowStoreMachine(RuleBasedStateMachine):
    """Does the same to a store and to a dictionary for each partition."""

    def __init__(self) -> None:
        super().__init__()
        self.store = WindowStore()
        self.model: dict[int, dict[str, Window]] = {}

    def _set(self, partition: int, user: str, window: Window | None) -> None:
        if window is None or window.empty:
            self.model[partition].pop(user, None)
        else:
            self.model[partition][user] = window

    @rule(partition=partitions)
    def add_partition(self, partition: int) -> None:
        """Also anew: what a takeover that was abandoned left there is gone."""
        self.store.add_partition(partition)
        self.model[partition] = {}

    @rule(partition=partitions)
    def drop_partition(self, partition: int) -> None:
        self.store.drop_partition(partition)
        self.model.pop(partition, None)

    @rule(
        partition=partitions, user=users, window=st.none() | windows().filter(lambda w: not w.empty)
    )
    def restore(self, partition: int, user: str, window: Window | None) -> None:
        if partition in self.model:
            self.store.restore(_records(partition, user, window))
            self._set(partition, user, window)
        else:
            with pytest.raises(KeyError):
                self.store.restore(_records(partition, user, window))

    @rule(partition=partitions, changed=st.dictionaries(users, windows()))
    def put(self, partition: int, changed: dict[str, Window]) -> None:
        packed = {user: pack(window, self.store.codes) for user, window in changed.items()}
        if partition in self.model:
            self.store.put(partition, packed)
            for user, window in changed.items():
                self._set(partition, user, window)
        else:
            with pytest.raises(KeyError):
                self.store.put(partition, packed)

    @invariant()
    def holds_what_was_put(self) -> None:
        codes = self.store.codes
        assert self.store.partitions == self.model.keys()
        assert len(self.store) == sum(map(len, self.model.values()))
        for partition in range(PARTITIONS):
            held = self.model.get(partition)
            if held is None:
                with pytest.raises(KeyError):
                    self.store.packed(partition, "a")
                with pytest.raises(KeyError):
                    list(self.store.users(partition))
                continue
            found = {user: unpack(one, codes) for user, one in self.store.users(partition)}
            assert found == held
            for user in USERS:
                packed = self.store.packed(partition, user)
                assert (packed == EMPTY) == (user not in held)
                assert unpack(packed, codes) == held.get(user, Window())


def _records(partition: int, user: str, window: Window | None) -> list[WindowRecords]:
    """Of one user: the last one counts."""
    values = [to_wire(Window(((60, "older"),))), None if window is None else to_wire(window)]
    return [WindowRecords(partition, [0, 1], [user, user], values, [0, 0])]


TestWindowStore = WindowStoreMachine.TestCase
TestWindowStore.settings = hypothesis_settings(
    max_examples=60, stateful_step_count=30, deadline=None
)


@pytest.fixture
def settings(broker: LocalBroker) -> Settings:
    """Topics and a group under names of their own."""
    name = f"t{uuid.uuid4().hex[:10]}"
    base = load_settings()
    topics = {f"{one}_topic": f"{name}.{one}" for one in ("clicks", "windows", "releases")}
    topics["dead_letters_topic"] = f"{name}.dead-letters"
    kafka = base.kafka.model_copy(update={"bootstrap_servers": broker.bootstrap_servers, **topics})
    worker = base.worker.model_copy(update={"group_id": name})
    made = base.model_copy(update={"kafka": kafka, "worker": worker})
    create_topics(made, partitions=PARTITIONS, replication=1)
    return made


@pytest.fixture
def topic(settings: Settings) -> Iterator[ClickTopic]:
    """A member of the group that was given every partition."""
    member = ClickTopic(settings)
    gained: set[int] = set()

    def has_all() -> bool:
        gained.update(member.poll(0.1)[1].gained)
        return len(gained) == PARTITIONS

    try:
        wait_until(has_all, "all partitions")
        yield member
    finally:
        member.close(timeout_s=5)


def restored(topic: ClickTopic, only: set[int]) -> WindowStore:
    store = WindowStore()
    for partition in only:
        store.add_partition(partition)
    for gathered in topic.restore(only):
        store.restore(gathered)
    return store


def contents(store: WindowStore) -> dict[tuple[int, str], Window]:
    return {
        (partition, user): unpack(packed, store.codes)
        for partition in store.partitions
        for user, packed in store.users(partition)
    }


def test_what_is_committed_is_restored_and_what_is_removed_is_absent(topic: ClickTopic) -> None:
    """Through a real transaction: last versions only, each on its own partition."""
    first = {
        (0, "a"): Window(((1, "x"), (2, "é"))),
        (0, "b"): Window(((3, "y"),), 2),
        (1, "a"): Window(((9, "y"),)),
        (2, "ü"): Window((), 7),
    }
    second = {(0, "a"): Window(((2, "é"), (4, "x"))), (1, "a"): None, (1, "b"): Window(((5, "x"),))}
    expected = {key: window for key, window in (first | second).items() if window is not None}
    for windows_put in (first, second):
        topic.commit(
            {
                number: [
                    (user, None if window is None else to_wire(window))
                    for (partition, user), window in windows_put.items()
                    if partition == number
                ]
                for number in range(PARTITIONS)
            },
            [],
            dict.fromkeys(range(PARTITIONS), 0),
            topic.membership,
        )
    assert contents(restored(topic, {0, 1, 2})) == expected
    assert contents(restored(topic, {1})) == {
        (partition, user): window
        for (partition, user), window in expected.items()
        if partition == 1
    }
