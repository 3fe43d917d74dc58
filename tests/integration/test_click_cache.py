"""The trainer's cache of the clicks topic: what it holds, after whatever happened to it."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from kafka import TopicPartition
from rich.console import Console

from deploy.local_broker import LocalBroker
from encoder.click import Click, Erasure
from encoder.click_history import clicks_extent, read_click_topic
from encoder.errors import Misconfigured
from encoder.kafka_client import admin_client, producer
from encoder.settings import Settings, load_settings
from encoder.topics import create_topics
from encoder.window import NEVER
from mindstream.cached_clicks import cache_folder
from mindstream.environment import environment_of
from mindstream.progress import Waiting
from mindstream.topic_clicks import read_topic_clicks
from tests.deployment import T0, random_clicks
from training.click_cache import Cached, ClickCache, Plan
from training.click_log import ClickLog, ClickLogError
from training.click_store import ClickStore

PARTITIONS = 3
PART_CLICKS = 150
DAY_MS = 86_400_000

Record = tuple[bytes | None, bytes | None]


class KilledHere(BaseException):
    """As if the process were killed."""


@dataclass
class Ground:
    """A clicks topic of its own, and a cache of it."""

    settings: Settings
    folder: Path
    told: list[str] = field(default_factory=list)

    def produce(self, clicks: Iterable[Click]) -> None:
        self.produce_raw(click.to_record() for click in clicks)

    def produce_raw(self, records: Iterable[Record], timestamp_ms: int | None = None) -> None:
        client = producer(self.settings.kafka, linger_ms=5)
        for key, value in records:
            client.send(
                self.settings.kafka.clicks_topic, key=key, value=value, timestamp_ms=timestamp_ms
            )
        client.flush()
        client.close()

    def update(
        self,
        horizon_ms: int | None = None,
        after: Callable[[str], None] = lambda what: None,
        merge_saves: int = 1000,
    ) -> Cached:
        extent = clicks_extent(self.settings)
        cache = ClickCache(self.folder, self.settings, warn=self.told.append, after=after)
        plan = Plan(extent, horizon_ms, part_clicks=PART_CLICKS, merge_saves=merge_saves)
        return cache.update(plan, current=extent)

    def parts(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))

    def cached(self) -> ClickLog:
        return ClickLog.from_parquet(self.folder)

    def delete_topic(self) -> None:
        with admin_client(self.settings.kafka) as admin:
            admin.delete_topics([self.settings.kafka.clicks_topic])

    def expire(self) -> None:
        """Delete all records, as the topic's retention does."""
        ends = clicks_extent(self.settings).ends
        topic = self.settings.kafka.clicks_topic
        with admin_client(self.settings.kafka) as admin:
            admin.delete_records({TopicPartition(topic, one): end for one, end in ends.items()})


@pytest.fixture
def ground(broker: LocalBroker, tmp_path: Path) -> Iterator[Ground]:
    """With no clicks yet."""
    name = f"t{uuid.uuid4().hex[:10]}"
    topics = ("clicks", "windows", "dead_letters", "releases")
    settings = load_settings(
        kafka={
            "bootstrap_servers": broker.bootstrap_servers,
            **{f"{one}_topic": f"{name}.{one}" for one in topics},
        },
        worker={"click_retention_s": 100 * 365 * 86_400},
        releases={"cache": str(tmp_path / "cache")},
    )
    create_topics(settings, partitions=PARTITIONS, replication=1)
    yield Ground(settings, cache_folder(settings))
    with admin_client(settings.kafka) as admin:
        admin.delete_topics([f"{name}.{one}" for one in topics])


def plain(settings: Settings) -> ClickLog:
    """What the topic holds, folded without a cache."""
    clicks: list[Click] = []
    erased: dict[str, int] = {}
    for events in read_click_topic(settings):
        for event in events:
            if isinstance(event, Click):
                clicks.append(event)
            elif isinstance(event, Erasure):
                erased[event.user_id] = max(event.up_to_ms, erased.get(event.user_id, NEVER))
    kept = [click for click in clicks if click.timestamp_ms > erased.get(click.user_id, NEVER)]
    users, items, times, _ = zip(*kept, strict=True)
    return ClickLog.from_arrays(users, items, times)


def same(one: ClickLog, other: ClickLog) -> bool:
    """Whether a training would have the same bits: it is given these arrays."""
    arrays = ("users", "items", "timestamps_ms")
    return (one.user_ids, one.item_ids) == (other.user_ids, other.item_ids) and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays
    )


def some_trouble(n: int, *, seed: int) -> list[Record]:
    """Clicks late, repeated and on the same instant; records that are no clicks; erasures."""
    rng = random.Random(seed)  # noqa: S311  nothing secret
    records: list[Record] = [click.to_record() for click in random_clicks(n, seed=seed)]
    for key in (b"user-1", b"user-3"):
        records.insert(rng.randrange(n), (key, b"{bad"))
        records.insert(rng.randrange(n), (b"wrong", Click(key.decode(), "i", T0).to_record()[1]))
    return records


def test_a_run_reads_only_what_is_new(ground: Ground) -> None:
    """What was cached stays, though the topic no longer has it; all of it is as it was there."""
    ground.produce_raw(some_trouble(400, seed=1))
    first = ground.update(horizon_ms=0)
    assert first.kept == 0
    assert first.new == sum(pq.ParquetFile(part).metadata.num_rows for part in ground.parts())
    assert same(ground.cached(), plain(ground.settings))
    ground.produce_raw(some_trouble(300, seed=2))
    together = plain(ground.settings)
    again = Ground(ground.settings, ground.folder.with_name("other"))
    once = again.update()
    # Of the first records nothing is left: whoever reads them again does not find them.
    topic = ground.settings.kafka.clicks_topic
    manifest = json.loads((ground.folder / "manifest.json").read_text())
    with admin_client(ground.settings.kafka) as admin:
        offsets = manifest["next_offsets"].items()
        admin.delete_records({TopicPartition(topic, int(one)): end for one, end in offsets})
    second = ground.update(horizon_ms=0)
    assert second.kept == first.new
    assert second.new + second.kept == once.new
    assert same(ground.cached(), together)
    assert ground.update(horizon_ms=0) == Cached(new=0, kept=once.new)
    assert not ground.told


def test_memory_is_bounded_by_a_part(ground: Ground) -> None:
    """No part has more clicks than asked for and what one batch of a partition holds."""
    clicks = [Click(f"u{n}", "i", T0 + n) for n in range(2000)]
    for first in range(0, len(clicks), 50):
        ground.produce(clicks[first : first + 50])
    ground.update()
    rows = [pq.ParquetFile(part).metadata.num_rows for part in ground.parts()]
    assert sum(rows) == 2000
    assert max(rows) <= PART_CLICKS + 50
    assert len(ground.cached()) == 2000


def test_an_erasure_reaches_what_was_cached_before(ground: Ground) -> None:
    """No file names the user any more; late old clicks are left out, newer ones are not."""
    ground.produce(random_clicks(600, users=8))
    before = ground.update()
    users = set(ground.cached().user_ids)
    assert "user-1" in users
    ground.produce_raw([(b"user-1", None)])
    after = ground.update()
    assert after.new == 0
    assert after.kept < before.new
    assert set(ground.cached().user_ids) == users - {"user-1"}
    assert same(ground.cached(), plain(ground.settings))
    assert b"user-1" not in (ground.folder / "manifest.json").read_bytes()
    for part in ground.parts():
        assert "user-1" not in pq.read_table(part).column("user_id").to_pylist()
    now_ms = int(time.time() * 1000)
    ground.produce([Click("user-1", "item-1", T0 + 5), Click("user-1", "item-2", now_ms + 1000)])
    assert ground.update().new == 1
    assert same(ground.cached(), plain(ground.settings))


def test_a_user_is_forgotten_before_the_tombstone_is_read(ground: Ground) -> None:
    """At once, in all parts; if that is killed at any step, the next update does the rest."""
    ground.produce(random_clicks(600, users=8))
    ground.update()
    users = set(ground.cached().user_ids)
    now_ms = int(time.time() * 1000)
    start = ground.folder.with_name("start")
    shutil.copytree(ground.folder, start)
    done: list[str] = []

    def kill(what: str) -> None:
        done.append(what)
        if len(done) == kills + 1:
            raise KilledHere

    kills = 0
    while True:
        shutil.rmtree(ground.folder)
        shutil.copytree(start, ground.folder)
        done.clear()
        cache = ClickCache(ground.folder, ground.settings, after=kill)
        try:
            forgotten = cache.forget("user-1", now_ms)
        except KilledHere:
            kills += 1
            ground.update()
        else:
            break
        assert set(ground.cached().user_ids) == users - {"user-1"}, done
    assert kills == len(done) > 4
    assert forgotten > 0
    assert set(ground.cached().user_ids) == users - {"user-1"}
    ground.produce_raw([(b"user-1", None)], timestamp_ms=now_ms)
    ground.update()
    assert same(ground.cached(), plain(ground.settings))
    assert ClickCache(ground.folder.with_name("none"), ground.settings).forget("u", now_ms) == 0


def test_an_erasure_spares_what_was_clicked_after_it(ground: Ground) -> None:
    """Of a user erased up to a moment, later clicks stay in the same part."""
    ground.produce([Click("u", f"i{n}", T0 + n) for n in range(10)])
    ground.update()
    ground.produce_raw([(b"u", None)], timestamp_ms=T0 + 5)
    ground.update()
    assert ground.cached().timestamps_ms.tolist() == [T0 + 6, T0 + 7, T0 + 8, T0 + 9]


def test_another_topic_of_the_name_starts_the_cache_anew(ground: Ground) -> None:
    """It was deleted and created again; the clicks of the one before are dropped, which is said."""
    ground.produce(random_clicks(200, seed=1))
    ground.update()
    ground.delete_topic()
    create_topics(ground.settings, partitions=PARTITIONS, replication=1)
    ground.produce(random_clicks(300, seed=2))
    ground.update()
    assert "deleted and created again" in ground.told.pop()
    assert same(ground.cached(), plain(ground.settings))


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_part_is_read_again(ground: Ground, damage: str) -> None:
    """It is named; a bit, the end or all of it is gone, and the cache is as it was."""
    ground.produce_raw(some_trouble(500, seed=1))
    ground.produce_raw([(b"user-2", None)])
    before = ground.update()
    part = ground.parts()[1]
    raw = bytearray(part.read_bytes())
    raw[len(raw) // 2] ^= 1
    if damage == "delete":
        part.unlink()
    else:
        part.write_bytes(raw if damage == "flip" else raw[:-20])
    assert ground.update() == Cached(new=0, kept=before.new)
    (told,) = ground.told
    assert f"{part} is damaged" in told
    assert same(ground.cached(), plain(ground.settings))
    ground.update()
    assert len(ground.told) == 1


def test_what_of_a_damaged_part_the_topic_no_longer_has_is_said(ground: Ground) -> None:
    """With partition and offsets; the rest of the cache stays."""
    ground.produce([Click("u", f"i{n}", T0 + n) for n in range(10)])
    ground.update(horizon_ms=0)
    ground.produce([Click("v", f"i{n}", T0 + n) for n in range(10)])
    ground.update(horizon_ms=0)
    ground.expire()
    ground.parts()[0].write_bytes(b"nothing")
    assert ground.update(horizon_ms=0) == Cached(new=0, kept=10)
    assert "which no longer has [" in ground.told.pop()
    assert ground.cached().user_ids == ["v"]


def test_a_damaged_manifest_is_named(ground: Ground) -> None:
    """And all is read anew."""
    ground.produce_raw(some_trouble(300, seed=1))
    ground.update()
    path = ground.folder / "manifest.json"
    path.write_text(path.read_text()[:-9])
    ground.update()
    assert f"{path} is no manifest" in ground.told.pop()
    assert same(ground.cached(), plain(ground.settings))


def test_the_cache_does_not_grow_beyond_the_topic(ground: Ground) -> None:
    """Without a horizon, parts go once the topic has nothing of them; what came since stays."""
    ground.produce(random_clicks(400, seed=1))
    ground.update()
    ground.expire()
    ground.produce(random_clicks(200, seed=2))
    found = ground.update()
    assert (found.new, found.kept) == (200, 0)
    assert same(ground.cached(), plain(ground.settings))


def test_a_horizon_drops_older_clicks(ground: Ground) -> None:
    """Parts wholly older go, and older clicks are not taken from the topic."""
    ground.produce([Click("u", f"i{n}", T0 + n * DAY_MS) for n in range(10)])
    ground.update(horizon_ms=T0)
    ground.produce([Click("v", f"i{n}", T0 + n * DAY_MS) for n in range(10, 20)])
    assert ground.update(horizon_ms=T0 + 9 * DAY_MS) == Cached(new=10, kept=10)
    assert ground.update(horizon_ms=T0 + 10 * DAY_MS) == Cached(new=0, kept=10)
    ground.produce([Click("w", "i", T0 + 3 * DAY_MS)])
    ground.update(horizon_ms=T0 + 10 * DAY_MS)
    assert ground.cached().user_ids == ["v"]


def test_records_that_retention_took_unread_are_named(ground: Ground) -> None:
    """With partition and offsets; the run goes on with what is left."""
    ground.update()
    ground.produce([Click("u", "i", T0)])
    ground.expire()
    ground.produce([Click("u", "i", T0 + 1)])
    assert ground.update().new == 1
    assert "from 0 to 1 were deleted by the topic's retention" in ground.told.pop()


def test_a_kill_at_any_step_changes_nothing(ground: Ground, tmp_path: Path) -> None:
    """The next run ends with what one that was never killed has, and leaves no other file."""
    ground.produce_raw(some_trouble(400, seed=1))
    ground.produce([Click("old", "item-1", T0 - DAY_MS)] * 3)
    ground.update()
    missing = ground.parts()[0]
    missing.unlink()
    ground.produce_raw([(b"user-0", None)])
    ground.produce_raw(some_trouble(400, seed=2))
    ground.produce_raw([(b"user-5", None)])
    done = killed_at_every_step(ground, tmp_path / "start")
    assert len(done) > 9
    assert {what.split()[0] for what in done} == {"wrote", "deleted"}
    assert all(str(missing) in told for told in ground.told)


def killed_at_every_step(ground: Ground, start: Path, merge_saves: int = 1000) -> list[str]:
    """Updates of a copy that are killed after one step more each time, and what the last one did.

    What a killed one leaves must be the same after the next one, without a file that is not named.
    """
    shutil.copytree(ground.folder, start)
    expected = plain(ground.settings)
    done: list[str] = []

    def kill(what: str) -> None:
        done.append(what)
        if len(done) == kills + 1:
            if what.startswith("wrote part"):  # it was killed in the middle of that
                (ground.folder / what.split()[-1]).write_bytes(b"half")
            raise KilledHere

    kills = 0
    while True:
        shutil.rmtree(ground.folder)
        shutil.copytree(start, ground.folder)
        done.clear()
        try:
            ground.update(after=kill, merge_saves=merge_saves)
        except KilledHere:
            kills += 1
            ground.update(merge_saves=merge_saves)
        else:
            break
        assert same(ground.cached(), expected), done
        manifest = json.loads((ground.folder / "manifest.json").read_text())
        named = {part["file"] for part in manifest["parts"]}
        assert named == {part.name for part in ground.parts()}, done
        assert not manifest["to_erase"]
    assert same(ground.cached(), expected)
    assert kills == len(done)
    return done


def small_parts(ground: Ground, runs: int, *, moments: int) -> None:
    """A part of each of so many runs, of a few moments far from each other."""
    for run in range(runs):
        at_ms = T0 + 1000 * (run * moments // runs)
        ground.produce([Click(f"u{n % 4}", f"i{run * 6 + n}", at_ms) for n in range(6)])
        ground.update()
    assert len(ground.parts()) == runs


def test_small_parts_are_merged_now_and_then(ground: Ground) -> None:
    """All clicks are still there, in fewer files of no more than a part's clicks; once."""
    small_parts(ground, 40, moments=3)
    before = ground.cached()
    ground.update(merge_saves=10)  # nothing is new, so that others may be reading
    assert len(ground.parts()) == 40
    ground.produce([Click("u1", "last", T0 + 5000)])
    assert ground.update(merge_saves=10) == Cached(new=1, kept=len(before))
    files = ground.parts()
    rows = sorted(pq.ParquetFile(part).metadata.num_rows for part in files)
    # Of three moments; the first part of another one spans the time since the one before.
    assert rows == [1, 6, 6, 72, 72, 84]
    assert same(ground.cached(), plain(ground.settings))
    ground.produce([Click("u1", "last", T0 + 501)])
    ground.update(merge_saves=10)
    assert set(files) < set(ground.parts())


def test_a_kill_while_parts_are_merged_changes_nothing(ground: Ground, tmp_path: Path) -> None:
    """At any step of it; two runs of parts are merged here."""
    small_parts(ground, 14, moments=2)
    ground.produce([Click("u1", "last", T0 + 500)])
    done = killed_at_every_step(ground, tmp_path / "start", merge_saves=8)
    assert [what.split()[0] for what in done].count("deleted") > 8
    assert done.count("wrote the manifest") == 3  # of what is new, and of either run


def test_a_merged_part_is_erased_from_and_mended(ground: Ground) -> None:
    """Its offsets are those of what it was merged from."""
    small_parts(ground, 14, moments=2)
    ground.produce([Click("u1", "last", T0 + 500)])
    ground.update(merge_saves=8)
    largest = max(ground.parts(), key=lambda part: pq.ParquetFile(part).metadata.num_rows)
    clicks = len(ground.cached())
    largest.write_bytes(b"nothing")
    assert ground.update() == Cached(new=0, kept=clicks)
    assert "is damaged" in ground.told.pop()
    assert same(ground.cached(), plain(ground.settings))
    ground.produce_raw([(b"u1", None)])
    ground.update()
    assert "u1" not in ground.cached().user_ids
    assert same(ground.cached(), plain(ground.settings))


def test_processes_of_one_machine_share_a_cache(ground: Ground) -> None:
    """The second waits for the first, and finds nothing to do."""
    ground.produce(random_clicks(500))
    with ThreadPoolExecutor(2) as pool:
        found = [future.result() for future in [pool.submit(ground.update) for _ in range(2)]]
    assert sorted(cached.new for cached in found)[0] == 0
    assert {cached.new + cached.kept for cached in found} == {500}
    assert same(ground.cached(), plain(ground.settings))


def test_ranks_read_the_same_clicks(ground: Ground, tmp_path: Path) -> None:
    """Those that the first finds, though more arrive before the second looks."""
    ground.produce([Click(f"u{n}", "item-1", T0) for n in range(200)])
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "tests.shared_cache", str(tmp_path)),
        ],
        env={**os.environ, **environment_of(ground.settings), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=200,
    )
    assert [(tmp_path / f"rank_{rank}").read_text() for rank in range(2)] == ["200", "200"]
    assert ground.update().new == 50


def test_a_folder_of_other_files_is_no_cache(ground: Ground) -> None:
    """Nothing in it is deleted or trained on; the message has the setting."""
    ground.folder.mkdir(parents=True)
    theirs = ground.folder / "clicks.parquet"
    theirs.write_bytes(b"theirs")
    with pytest.raises(Misconfigured, match="MINDSTREAM_TRAINER__CLICK_CACHE"):
        ground.update()
    assert theirs.read_bytes() == b"theirs"


def read(ground: Ground, note: Path, since_ms: int | None = None) -> ClickLog | ClickStore:
    """As a run of the trainer does."""
    with Waiting(Console(quiet=True)) as waiting:
        return read_topic_clicks(
            ground.settings,
            since_ms,
            note_folder=note,
            sort_folder=note / "sorted",
            waiting=waiting,
        )


def test_a_run_that_goes_on_reads_the_same_clicks(ground: Ground, tmp_path: Path) -> None:
    """Where a checkpoint is; what came or expired since is for the next run."""
    ground.produce(random_clicks(300, seed=1))
    note = tmp_path / "checkpoint"
    first = read(ground, note)
    (note / "training.safetensors").touch()
    ground.expire()
    ground.produce(random_clicks(300, seed=2))
    second = read(ground, note)
    assert isinstance(first, ClickLog)
    assert isinstance(second, ClickLog)
    assert same(first, second)
    shutil.rmtree(note)
    third = read(ground, note)
    assert isinstance(third, ClickLog)
    assert same(third, plain(ground.settings))


def test_clicks_beyond_the_buffer_are_sorted_on_disk(ground: Ground, tmp_path: Path) -> None:
    """The same clicks as in memory; a start time is kept to."""
    clicks = random_clicks(1500)
    ground.produce(clicks)
    small = ground.settings.trainer.model_copy(update={"buffer_clicks": 1000})
    beyond = Ground(ground.settings.model_copy(update={"trainer": small}), ground.folder)
    stored = read(beyond, tmp_path / "note")
    log = plain(ground.settings)
    assert isinstance(stored, ClickStore)
    assert (stored.clicks, stored.item_ids) == (len(log), log.item_ids)
    since_ms = T0 + 200
    later = read(ground, tmp_path / "note", since_ms)
    assert isinstance(later, ClickLog)
    assert same(later, log.between(since_ms))


def test_an_empty_topic_is_named(ground: Ground, tmp_path: Path) -> None:
    """There is nothing to train on."""
    with pytest.raises(ClickLogError, match=ground.settings.kafka.clicks_topic):
        read(ground, tmp_path / "note")
