"""One suite for the store, on Milvus Lite and on a real Milvus server."""

import dataclasses
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from pymilvus import MilvusClient
from pymilvus.exceptions import MilvusException

from deploy.local_milvus import LocalMilvusLite, LocalMilvusServer
from encoder.errors import LeaseRanOut, Misconfigured, Unavailable
from encoder.interest_index import InterestIndex, ReleaseInUse
from encoder.interests import InterestRows, interest_key
from encoder.item_index import ItemChanges, seen_of
from encoder.milvus_client import close_embedded
from encoder.mix import Mix
from encoder.mix_index import StoredMix
from encoder.settings import MilvusSettings
from tests.deployment import wait_until

WIDTH = 8
SLOTS = 4
BUDGET_S = 60.0


@pytest.fixture(scope="module", params=["lite", "server"])
def index(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[InterestIndex]:
    if request.param == "lite":
        uri = str(tmp_path_factory.mktemp("lite") / "store.db")
    else:
        uri = request.getfixturevalue("milvus_server").uri
    opened = InterestIndex(MilvusSettings(uri=uri, timeout_s=120), max_behind_s=0.001)
    yield opened
    opened.close()
    close_embedded(uri)


@pytest.fixture(scope="module")
def release(index: InterestIndex) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex[:8]}"
    index.create_release(name, WIDTH)
    yield name
    index.drop_release(name)
    assert not index.has_release(name)


@pytest.fixture
def user() -> str:
    return f"user #{uuid.uuid4().hex[:8]}"


def unit_vectors(n: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, WIDTH)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rows_of(user_id: str, n: int, *, seed: int = 0, updated_at: int = 1) -> InterestRows:
    return InterestRows(
        user_ids=[user_id] * n,
        slots=np.arange(n),
        weights=np.linspace(0.1, 0.4, n).astype(np.float32),
        exemplars=[f'item "{slot}"' for slot in range(n)],
        updated_at=np.full(n, updated_at),
        vectors=unit_vectors(n, seed),
    )


def write(index: InterestIndex, release: str, rows: InterestRows, stale: list[str]) -> None:
    index.write_interests(release, rows, stale, budget_s=BUDGET_S)


def test_a_server_is_the_real_thing(milvus_server: LocalMilvusServer) -> None:
    """The server tells the version of Milvus that its package has."""
    client = MilvusClient(uri=milvus_server.uri)
    assert client.get_server_version().startswith("v2.3.5")
    client.close()


def test_only_lite_compares_with_every_interest(
    index: InterestIndex, release: str, request: pytest.FixtureRequest
) -> None:
    """It would index them all again and again while they are written."""
    store = index._store
    on_lite = request.node.callspec.params["index"] == "lite"
    found = store._client.describe_index(f"interests_{release}", "vector")
    assert store.is_lite == on_lite
    assert (found["index_type"] == "FLAT") == on_lite


def test_writers_wait_for_readers_on_a_server(
    index: InterestIndex, release: str, user: str, request: pytest.FixtureRequest
) -> None:
    """There rows are acknowledged before they can be read; how far behind that is, is known."""
    for at in range(3):
        write(index, release, rows_of(user, 2, updated_at=at), [])
    on_lite = request.node.callspec.params["index"] == "lite"
    assert (release in index._paces) != on_lite
    wait_until(lambda: index.behind_s == 0, "readers")
    found = index.interests(release, [user], SLOTS, "Strong")
    assert {interest.updated_at for interest in found[user]} == {2}


def test_what_is_written_is_read_bit_for_bit(index: InterestIndex, release: str, user: str) -> None:
    """Every field and every bit, strongest interest first."""
    rows = rows_of(user, 3, updated_at=1_700_000_000_123)
    write(index, release, rows, [])
    found = index.interests(release, [user, "nobody"], SLOTS, "Strong")
    assert set(found) == {user}
    assert [interest.slot for interest in found[user]] == [2, 1, 0]
    for interest in found[user]:
        assert interest.vector.tobytes() == rows.vectors[interest.slot].tobytes()
        assert np.float32(interest.weight) == rows.weights[interest.slot]
        assert interest.exemplar == f'item "{interest.slot}"'
        assert interest.updated_at == 1_700_000_000_123


def test_releases_with_a_mix_have_recent_clicks_and_popularity(
    index: InterestIndex, release: str, user: str
) -> None:
    """Whatever ids look like, read on demand; popularity of items that have any."""
    name = f"{release}_mixed"
    mix = Mix(interests=3, popular=0.5, own=-2)
    items = ["mix", 'item "1"', "ü" * 64, "none"]
    popularity = np.array([0.25, 2, -1, 0], np.float32)
    index.create_release(name, WIDTH, mixed=True)
    for _ in range(2):
        index.mixes.write(name, mix, items, popularity)
    longest = '["' + "ü" * 32_000 + '"]'
    rows = dataclasses.replace(rows_of(user, 2), recent=[longest, ""])
    write(index, name, rows, [])
    assert index.mixes.read(name) == StoredMix(mix, {items[0]: 0.25, items[1]: 2, items[2]: -1})
    (asked,) = index.interests(name, [user], SLOTS, "Strong", recent=True).values()
    assert {row.slot: row.recent for row in asked} == {0: longest, 1: ""}
    (plain,) = index.interests(name, [user], SLOTS, "Strong").values()
    assert {row.recent for row in plain} == {""}
    assert {row.recent for row in index.all_interests(name)} == {longest, ""}
    index.drop_release(name)
    assert index.mixes.read(name) is None
    assert index.mixes.read(release) is None


def test_writing_again_overwrites(index: InterestIndex, release: str, user: str) -> None:
    """A repeated step has the effect of one."""
    write(index, release, rows_of(user, 2, seed=1), [])
    for _ in range(2):
        write(index, release, rows_of(user, 2, seed=2, updated_at=9), [])
    found = index.interests(release, [user], SLOTS, "Strong")[user]
    assert len(found) == 2
    assert {interest.updated_at for interest in found} == {9}
    by_slot = sorted(found, key=lambda interest: interest.slot)
    assert np.array_equal(np.stack([i.vector for i in by_slot]), unit_vectors(2, 2))


def test_writing_again_overwrites_what_was_flushed(
    index: InterestIndex, release: str, user: str
) -> None:
    """Rows that left the store's log are replaced alike: read, listed, counted and found once."""
    before = index.count("interests", release)
    write(index, release, rows_of(user, 3, seed=41), [])
    index._store.flush(f"interests_{release}")
    write(index, release, rows_of(user, 2, seed=42, updated_at=9), [interest_key(user, 2)])
    found = index.interests(release, [user], SLOTS, "Strong")[user]
    assert [(i.slot, i.updated_at) for i in found] == [(1, 9), (0, 9)]
    listed = [row for row in index.all_interests(release) if row.user_id == user]
    assert sorted((row.slot, row.updated_at) for row in listed) == [(0, 9), (1, 9)]
    assert index.count("interests", release) == before + 2
    assert [
        hit.id for hit in index.nearest_users(release, unit_vectors(2, 42)[0], 1, "Strong")
    ] == [user]
    old = unit_vectors(3, 41)[2]
    assert index.nearest_users(release, old, 1, "Strong")[0].score < 0.999


def test_stale_keys_are_deleted_whether_or_not_they_exist(
    index: InterestIndex, release: str, user: str
) -> None:
    """Slots no longer in use go; deleting what is not there is no error."""
    write(index, release, rows_of(user, 4), [])
    stale = [interest_key(user, slot) for slot in (2, 3)]
    for _ in range(2):
        write(index, release, rows_of(user, 2), stale)
    found = index.interests(release, [user], SLOTS, "Strong")[user]
    assert sorted(interest.slot for interest in found) == [0, 1]


def test_a_user_without_interests_is_deleted_wholly(
    index: InterestIndex, release: str, user: str
) -> None:
    """No rows to write, only keys to delete: what an erasure asks."""
    write(index, release, rows_of(user, 4), [])
    write(index, release, rows_of(user, 0), [interest_key(user, slot) for slot in range(SLOTS)])
    assert index.interests(release, [user], SLOTS, "Strong") == {}


HOSTILE = [
    "o'brien",
    'say "hi"',
    "back\\slash",
    "ends with \\",
    "x'] or user_id not in ['y",
    'x"] or id != "',
    "100% {curly} #hash",
    "ünïcode 漢字 🛍",
    " spaces ",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_any_id_is_written_read_listed_and_deleted_by_itself(
    index: InterestIndex, release: str, hostile: str
) -> None:
    """No id reaches beyond its own rows, whatever characters it has."""
    bystander = f"bystander of {hostile}"
    write(index, release, rows_of(hostile, 2), [])
    write(index, release, rows_of(bystander, 2), [])
    found = index.interests(release, [hostile], SLOTS, "Strong")
    assert {user: len(rows) for user, rows in found.items()} == {hostile: 2}
    listed = [row.user_id for row in index.all_interests(release)]
    assert listed.count(hostile) == listed.count(bystander) == 2
    stale = [interest_key(hostile, slot) for slot in range(SLOTS)]
    write(index, release, rows_of(hostile, 0), stale)
    found = index.interests(release, [hostile, bystander], SLOTS, "Strong")
    assert {user: len(rows) for user, rows in found.items()} == {bystander: 2}
    assert list(index.write_items(release, [hostile], unit_vectors(1))) == [1]
    assert set(index.item_vectors(release, [hostile], "Strong")) == {hostile}


def test_every_row_is_listed_and_counted_once(index: InterestIndex, release: str) -> None:
    """The audit sees all rows, beyond one page of them."""
    users = 1500
    rows = InterestRows(
        user_ids=[f"listed-{n // 4}" for n in range(users * 4)],
        slots=np.arange(users * 4) % 4,
        weights=np.full(users * 4, 0.25, np.float32),
        exemplars=["i"] * (users * 4),
        updated_at=np.full(users * 4, 5),
        vectors=unit_vectors(users * 4),
    )
    write(index, release, rows, [])
    listed = [row for row in index.all_interests(release) if row.user_id.startswith("listed-")]
    assert len(listed) == users * 4
    assert len({interest_key(row.user_id, row.slot) for row in listed}) == users * 4
    assert index.count("interests", release) == len(list(index.all_interests(release)))


def test_items_are_found_by_inner_product_and_by_id(index: InterestIndex, release: str) -> None:
    """The nearest item is what a brute-force product says; an unknown id is absent."""
    items = [f"item-{n}" for n in range(300)]
    vectors = unit_vectors(300, seed=3)
    assert list(index.write_items(release, items, vectors))[-1] == 300
    asked = unit_vectors(2, seed=4)
    found = index.nearest_items(release, asked, 5, "Strong")
    for hits, scores in zip(found, asked @ vectors.T, strict=True):
        best = np.argsort(-scores)[:5]
        assert [hit.id for hit in hits] == [items[n] for n in best]
        np.testing.assert_allclose([hit.score for hit in hits], scores[best], rtol=1e-5)
    assert set(index.item_vectors(release, ["item-7", "unknown"], "Strong")) == {"item-7"}
    assert index.count("items", release) >= 300


def test_no_item_is_missed_among_many(index: InterestIndex) -> None:
    """Also once the store has indexed them, which approximate indexes of both stores fail."""
    release, count, limit = f"many_{uuid.uuid4().hex[:10]}", 20_000, 50
    width = 64
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(count, width)).astype(np.float32)
    index.create_release(release, width)
    try:
        assert list(index.write_items(release, [str(n) for n in range(count)], vectors))
        client = index._store._client
        client.release_collection(f"items_{release}")
        wait_until(lambda: _loads(client, f"items_{release}"), "items to be indexed")
        asked = rng.normal(size=(20, width)).astype(np.float32)
        found = index.nearest_items(release, asked, limit, "Strong")
        for hits, scores in zip(found, asked @ vectors.T, strict=True):
            assert {int(hit.id) for hit in hits} == set(np.argsort(-scores)[:limit].tolist())
    finally:
        index.drop_release(release)


def _loads(client: MilvusClient, collection: str) -> bool:
    """With its index; Lite refuses while it is still writing that."""
    with suppress(MilvusException):
        client.load_collection(collection)
        return True
    return False


def test_users_near_an_item_come_once_each(index: InterestIndex, release: str) -> None:
    """A user whose slots are all near counts once, with the nearest of them."""
    target = unit_vectors(1, seed=77)[0]
    near = [f"near-{n}" for n in range(3)]
    for rank, user_id in enumerate(near):
        rows = rows_of(user_id, 4)
        drawn = target + 0.01 * (rank + 1) * unit_vectors(4, seed=rank)
        rows.vectors[:] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        write(index, release, rows, [])
    hits = index.nearest_users(release, target, 3, "Strong")
    assert {hit.id for hit in hits} == set(near)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_the_pointer_moves_as_one_row(index: InterestIndex, release: str) -> None:
    """Readers learn name and K together."""
    index.use_release(release, SLOTS)
    assert index.release_in_use() == ReleaseInUse(release, SLOTS)
    index.use_release("another", 7)
    assert index.release_in_use() == ReleaseInUse("another", 7)


def test_a_release_created_by_several_at_once_is_there_once(index: InterestIndex) -> None:
    """Workers that complete a release together must not end over it."""
    name = f"test_{uuid.uuid4().hex[:8]}"
    with ThreadPoolExecutor(4) as pool:
        for created in [pool.submit(index.create_release, name, WIDTH) for _ in range(4)]:
            created.result()
    write(index, name, rows_of("u", 2), [])
    assert len(index.interests(name, ["u"], SLOTS, "Strong")["u"]) == 2
    index.drop_release(name)


def test_a_release_of_another_width_is_refused(index: InterestIndex, release: str) -> None:
    """A name used twice is told, naming the collection."""
    index.create_release(release, WIDTH)
    with pytest.raises(Misconfigured, match=f"interests_{release} .* width {WIDTH}, not 16"):
        index.create_release(release, 16)


def test_a_spent_budget_is_told(index: InterestIndex, release: str, user: str) -> None:
    """The step's time is up: unavailable, whatever pymilvus or gRPC call it."""
    many = 20_000  # far more than can be written in the time
    rows = InterestRows(
        user_ids=[f"{user} {n}" for n in range(many)],
        slots=np.zeros(many, np.int64),
        weights=np.ones(many, np.float32),
        exemplars=["i"] * many,
        updated_at=np.ones(many, np.int64),
        vectors=np.tile(unit_vectors(1), (many, 1)),
    )
    for budget_s in (0.0, 0.001):
        with pytest.raises(Unavailable):
            index.write_interests(release, rows, [], budget_s=budget_s)


def test_nothing_is_written_once_the_lease_has_run_out(
    index: InterestIndex, release: str, user: str
) -> None:
    """It is asked before every request: what was sent before stays, nothing more follows."""
    write(index, release, rows_of(user, 2, seed=1), [])
    stale = [interest_key(user, 1)]
    leases = iter((1.0, 0.0))
    for lease, written in ((lambda: 0.0, False), (lambda: next(leases), True)):
        with pytest.raises(LeaseRanOut):
            index.write_interests(
                release, rows_of(user, 1, seed=2), stale, budget_s=BUDGET_S, lease=lease
            )
        found = index.interests(release, [user], SLOTS, "Strong")[user]
        assert len(found) == 2, "nothing was deleted"
        first = next(interest for interest in found if interest.slot == 0)
        assert np.array_equal(first.vector, unit_vectors(1, 2)[0]) == written


def test_users_are_forgotten_in_every_release_named(
    index: InterestIndex, release: str, user: str
) -> None:
    """All their slots, nobody else's, and releases that are not there are no error."""
    write(index, release, rows_of(user, 4, updated_at=7), [])
    write(index, release, rows_of(f"{user}'s neighbour", 2), [])
    assert index.rows_by_collection(user)[f"interests_{release}"] == [7, 7, 7, 7]
    index.forget([user, "nobody"], [release, "nowhere"], budget_s=BUDGET_S)
    assert index.rows_by_collection(user)[f"interests_{release}"] == []
    assert len(index.rows_by_collection(f"{user}'s neighbour")[f"interests_{release}"]) == 2


def test_a_missing_collection_is_told(index: InterestIndex) -> None:
    """The error names what was being done and where."""
    with pytest.raises(Unavailable, match="interests_nowhere"):
        index.interests("nowhere", ["u"], SLOTS, "Strong")


def test_a_second_process_is_told_that_lite_takes_one(tmp_path: Path) -> None:
    """The message names the folder and both ways out."""
    uri = str(tmp_path / "store.db")
    first = InterestIndex(MilvusSettings(uri=uri))
    code = (
        "from encoder.settings import MilvusSettings\n"
        "from encoder.interest_index import InterestIndex\n"
        "from encoder.errors import Misconfigured\n"
        f"try: InterestIndex(MilvusSettings(uri={uri!r}))\n"
        "except Misconfigured as exc: print(exc)\n"
    )
    second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    first.close()
    close_embedded(uri)
    assert "is open in another process" in second.stdout, second.stderr
    assert "MINDSTREAM_MILVUS__URI=http://127.0.0.1:19530" in second.stdout
    assert str(tmp_path) in second.stdout


def test_a_lite_folder_opened_again_reads_what_was_written(tmp_path: Path) -> None:
    """Rows and the pointer outlive the process; collections are loaded when first read."""
    settings = MilvusSettings(uri=str(tmp_path / "store.db"))
    first = InterestIndex(settings)
    first.create_release("r", WIDTH)
    write(first, "r", rows_of("u", 2), [])
    first.use_release("r", SLOTS)
    first.close()
    close_embedded(settings.uri)
    again = InterestIndex(settings)
    assert again.release_in_use() == ReleaseInUse("r", SLOTS)
    assert len(again.interests("r", ["u"], SLOTS, "Bounded")["u"]) == 2
    assert again.count("items", "r") == 0
    again.close()
    close_embedded(settings.uri)


def test_an_unreachable_server_is_told() -> None:
    """The message names the setting."""
    with pytest.raises(Unavailable, match="MINDSTREAM_MILVUS__URI"):
        InterestIndex(MilvusSettings(uri="http://127.0.0.1:9", timeout_s=1))


def test_lite_shared_behind_a_port_takes_several_processes(milvus_lite: LocalMilvusLite) -> None:
    """What one client writes another reads."""
    name = f"test_{uuid.uuid4().hex[:8]}"
    one = InterestIndex(MilvusSettings(uri=milvus_lite.uri))
    other = InterestIndex(MilvusSettings(uri=milvus_lite.uri))
    one.create_release(name, WIDTH)
    write(one, name, rows_of("u", 2), [])
    assert len(other.interests(name, ["u"], SLOTS, "Bounded")["u"]) == 2
    one.drop_release(name)
    one.close()
    other.close()


def item_changes(*said: tuple[str, bool, int, int], seed: int = 0) -> ItemChanges:
    """Item, whether it is withdrawn, and partition and offset of the record."""
    return ItemChanges(
        item_ids=[item_id for item_id, _, _, _ in said],
        vectors=unit_vectors(len(said), seed),
        withdrawn=np.array([gone for _, gone, _, _ in said]),
        partitions=np.array([partition for _, _, partition, _ in said]),
        offsets=np.array([offset for _, _, _, offset in said]),
    )


def test_changes_of_items_are_retrieved_and_told(index: InterestIndex) -> None:
    """Withdrawn items are gone; whoever saw some of the changes is told the others."""
    release = f"test_{uuid.uuid4().hex[:8]}"
    index.create_release(release, WIDTH)
    assert list(index.write_items(release, ["old", "kept"], unit_vectors(2)))
    assert index.items.changes_since(release, {}, "Strong") is None
    assert index.items.withdrawn(release) == set()
    first = item_changes(("new", False, 0, 4), ("old", True, 1, 2), ('a "b" \\', False, 1, 3))
    for _ in range(2):  # may be repeated
        index.items.change(release, first, budget_s=BUDGET_S)
    assert index.items.withdrawn(release) == {"old"}
    found = index.item_vectors(release, ["new", "old", "kept", 'a "b" \\'], "Strong")
    assert sorted(found) == ['a "b" \\', "kept", "new"]
    assert found["new"].tobytes() == first.vectors[0].tobytes()
    told = index.items.changes_since(release, {}, "Strong")
    assert told is not None
    assert told.item_ids == ['a "b" \\', "new", "old"]
    seen = seen_of(told, {})
    assert seen == {0: 5, 1: 4}
    assert index.items.changes_since(release, seen, "Strong") is None
    second = item_changes(("old", False, 1, 7), ("two", False, 2, 0), seed=1)
    index.items.change(release, second, budget_s=BUDGET_S)
    told = index.items.changes_since(release, seen, "Strong")
    assert told is not None
    assert told.item_ids == ["old", "two"]
    assert told.withdrawn.tolist() == [False, False]
    assert told.vectors.tobytes() == second.vectors.tobytes()
    assert index.items.withdrawn(release) == set()
    index.drop_release(release)
    assert index.items.changes_since(release, {}, "Strong") is None


def test_items_are_not_changed_without_a_lease(index: InterestIndex, release: str) -> None:
    """Whoever lost the partition writes nothing."""
    with pytest.raises(LeaseRanOut):
        index.items.change(
            release, item_changes(("late", False, 0, 1)), budget_s=BUDGET_S, lease=lambda: 0.0
        )
    assert index.item_vectors(release, ["late"], "Strong") == {}
