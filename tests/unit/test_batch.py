"""What a batch of records does to windows."""

import json

import pytest

from consumers.batch import decide
from consumers.packed_window import EMPTY, unpack
from consumers.window_store import WindowStore
from encoder.records import Record
from encoder.window import Window

T0 = 1_700_000_000_000
SOON_MS = 1000


def record(
    offset: int,
    user: str | None = "u1",
    item: str = "a",
    at: int = T0,
    *,
    value: bytes | None = b"",
    produced: int = T0,
    partition: int = 0,
) -> Record:
    if value == b"":
        value = json.dumps({"user_id": user, "item_id": item, "timestamp": at}).encode()
    return Record(partition, offset, produced, None if user is None else user.encode(), value)


@pytest.fixture
def store() -> WindowStore:
    store = WindowStore()
    store.add_partition(0)
    store.add_partition(1)
    return store


def decided(store: WindowStore, *records: Record) -> dict[str, Window]:
    decision = decide(records, store, window_length=3, max_future_ms=SOON_MS)
    windows = {
        user: unpack(packed, store.codes)
        for of_partition in decision.windows.values()
        for user, packed in of_partition.items()
    }
    for partition, of_partition in decision.windows.items():
        store.put(partition, of_partition)
    return windows


def test_a_batch_coalesces_a_users_clicks(store: WindowStore) -> None:
    """One changed window per user, however many clicks."""
    windows = decided(store, record(0, item="a"), record(1, "u2"), record(2, item="b", at=T0 + 1))
    assert windows["u1"].clicks == ((T0, "a"), (T0 + 1, "b"))
    assert set(windows) == {"u1", "u2"}


def test_users_whose_window_does_not_change_drop_out(store: WindowStore) -> None:
    """A replayed click is no work for the encoder or the store."""
    decided(store, record(0))
    assert decided(store, record(0), record(1)) == {}


def test_the_next_offset_is_one_after_the_last_of_each_partition(store: WindowStore) -> None:
    """Rejected records and unchanged windows advance offsets too."""
    decision = decide(
        [record(4), record(5, value=b"{"), record(9, partition=1), record(6)],
        store,
        window_length=3,
        max_future_ms=SOON_MS,
    )
    assert decision.next_offsets == {0: 7, 1: 10}
    assert [(r.record.offset, r.reason) for r in decision.rejected] == [(5, "not_json")]
    assert (decision.clicks, decision.erasures, decision.users) == (3, 0, 2)


def test_a_tombstone_forgets_clicks_up_to_its_own_time(store: WindowStore) -> None:
    """Clicks from before stay forgotten when replayed; later ones start afresh."""
    decided(store, record(0, at=T0 - 5), record(1, item="b", at=T0 + 5))
    gone = decided(store, record(2, value=None, produced=T0))
    assert gone["u1"] == Window(((T0 + 5, "b"),), T0)
    assert decided(store, record(0, at=T0 - 5)) == {}
    again = decided(store, record(3, item="c", at=T0 + 6))
    assert again["u1"].clicks == ((T0 + 5, "b"), (T0 + 6, "c"))


def test_an_erasure_before_or_after_a_click_in_a_batch_means_the_same() -> None:
    """Order within a batch does not matter."""
    erasure, click = record(1, value=None, produced=T0), record(2, at=T0)
    for order in ([erasure, click], [click, erasure]):
        store = WindowStore()
        store.add_partition(0)
        assert decided(store, *order)["u1"] == Window((), T0)


def test_the_future_is_measured_from_the_records_own_timestamp(store: WindowStore) -> None:
    """The same record is judged alike whenever it is replayed."""
    near = record(0, at=T0 + SOON_MS, produced=T0)
    far = record(1, at=T0 + SOON_MS + 1, produced=T0)
    decision = decide([near, far], store, window_length=3, max_future_ms=SOON_MS)
    assert [r.reason for r in decision.rejected] == ["future_timestamp"]
    assert decision.users == 1


def test_a_tombstone_without_a_user_is_rejected(store: WindowStore) -> None:
    """There is nobody to forget."""
    decision = decide([record(0, None, value=None)], store, window_length=3, max_future_ms=0)
    assert [r.reason for r in decision.rejected] == ["no_key"]


def test_deciding_changes_nothing(store: WindowStore) -> None:
    """Windows are kept only once they are committed."""
    decide([record(0)], store, window_length=3, max_future_ms=SOON_MS)
    assert len(store) == 0
    assert store.packed(0, "u1") == EMPTY


def test_a_dropped_partition_holds_nothing(store: WindowStore) -> None:
    """Asking for its windows is an error, not an empty answer."""
    decided(store, record(0))
    store.drop_partition(0)
    assert store.partitions == {1}
    with pytest.raises(KeyError):
        store.packed(0, "u1")
