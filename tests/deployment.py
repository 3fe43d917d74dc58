"""A deployment of its own for a test: topics, a small real release, and workers."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from consumers.update_loop import Step
from consumers.worker import run_worker
from encoder.click import Click
from encoder.dead_letter_topic import DeadLetter, read_dead_letters
from encoder.errors import Unavailable
from encoder.interest_index import InterestIndex
from encoder.kafka_client import producer
from encoder.mind_encoder import MindEncoder
from encoder.release import Release
from encoder.release_topic import read_releases
from encoder.settings import Settings, load_settings
from encoder.topics import create_topics
from mindstream.audit import Audit, audit_store
from mindstream.environment import environment_of
from mindstream.group import wait_until_consumed
from mindstream.release_switch import wait_until_filled
from tests.processes import eventually
from tests.small_release import make_small_release
from training.publication import publish

T0 = 1_700_000_000_000
ITEMS = 60
DEADLINE_S = 90.0  # of waits that end much sooner unless something is wrong


@dataclass
class Deployment:
    """Everything one group of workers needs."""

    settings: Settings
    release: Release
    partitions: int
    folder: Path
    make_release: Callable[..., Release]

    def produce(self, clicks: Iterable[Click]) -> None:
        """Put clicks on the topic, in order."""
        self.produce_raw(click.to_record() for click in clicks)

    def produce_raw(
        self,
        records: Iterable[tuple[bytes | None, bytes | None]],
        *,
        timestamp_ms: int | None = None,
    ) -> None:
        """Put any records on the clicks topic; without a key they go to partition 0."""
        client = producer(self.settings.kafka, linger_ms=5)
        for key, value in records:
            client.send(
                self.settings.kafka.clicks_topic,
                key=key,
                value=value,
                partition=0 if key is None else None,
                timestamp_ms=timestamp_ms,
            )
        client.flush()
        client.close()

    @contextmanager
    def worker(self, after_step: Callable[[Step], None] = lambda step: None) -> Iterator[None]:
        """A worker on a thread; what it raises is raised at the end."""
        stop = threading.Event()
        raised: list[BaseException] = []

        def run() -> None:
            try:
                run_worker(self.settings, stop, after_step=after_step)
            except BaseException as exc:
                raised.append(exc)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        except BaseException as exc:
            raise (raised or [exc])[0] from exc  # what ended the worker explains the rest
        finally:
            stop.set()
            thread.join(DEADLINE_S)
            assert not thread.is_alive()
        if raised:
            raise raised[0]

    def worker_process(self, *arguments: str, instance: str = "") -> subprocess.Popen[bytes]:
        """A worker as a process; `arguments` are those of tests.faults.faulty_worker."""
        environment = {**os.environ, **environment_of(self.settings)}
        if instance:
            environment["MINDSTREAM_WORKER__INSTANCE_ID"] = instance
        with (self.folder / "worker.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.faults.faulty_worker", *arguments],
                env=environment,
                stdout=log,
                stderr=log,
            )

    def worker_log(self) -> str:
        """What the worker processes logged so far."""
        return (self.folder / "worker.log").read_text()

    def wait_until_consumed(self) -> None:
        """Until every record now on the topic is committed."""
        wait_until_consumed(self.settings, self.partitions, stalled_after_s=DEADLINE_S)

    def wait_until_filled(self) -> None:
        """Until workers have encoded every window for the release."""
        wait_until_filled(self.settings, self.release.name, self.partitions)

    def publish_next(self, *, seed: int) -> None:
        """Publish another release, which is the one to audit from now on."""
        self.release = self.publish(f"{self.release.name}_{seed}", seed=seed)

    def drop_releases(self, *, but: str) -> None:
        """Drop the collections of every announced release but one."""
        index = InterestIndex(self.settings.milvus)
        for announcement in read_releases(self.settings.kafka).announced:
            if announcement.release != but:
                index.drop_release(announcement.release)
        index.close()

    def consume_all(self) -> None:
        """Run a worker until it is at the end of the topic."""
        with self.worker():
            self.wait_until_consumed()
            self.wait_until_filled()

    def index_rows(self) -> int:
        """Rows of interests in the store."""
        index = InterestIndex(self.settings.milvus)
        rows = index.count("interests", self.release.name)
        index.close()
        return rows

    def audit(self) -> Audit:
        """The store against a plain fold over the topic."""
        index = InterestIndex(self.settings.milvus)
        found = audit_store(self.settings, index, MindEncoder(self.release))
        index.close()
        return found

    def dead_letters(self) -> list[dict[str, object]]:
        """Source, reason, key, value and headers of every dead letter; receipts left out."""
        return [
            asdict(found)
            for _, found in read_dead_letters(self.settings.kafka)
            if isinstance(found, DeadLetter)
        ]

    def publish(self, name: str, *, seed: int) -> Release:
        """Publish another release; workers keep it up to date beside the others."""
        release = self.make_release(self.folder, name, seed=seed)
        index = InterestIndex(self.settings.milvus)
        publish(release, self.settings, index)
        index.close()
        return release


def small_release(folder: Path, name: str, *, seed: int = 0) -> Release:
    """A real release with items `item-1` to `item-60`, windows of 8 clicks and 3 interests."""
    return make_small_release(
        folder / name, items=ITEMS, width=8, interests=3, window_length=8, seed=seed, name=name
    )


@contextmanager
def deployed(
    bootstrap_servers: str,
    milvus_uri: str,
    folder: Path,
    *,
    partitions: int = 4,
    worker: Mapping[str, object] = {},
    release: Callable[..., Release] = small_release,
) -> Iterator[Deployment]:
    """Topics and a published release under names of their own; its collections go at the end.

    Args:
        bootstrap_servers: a running broker.
        milvus_uri: a running store.
        folder: for releases and logs.
        partitions: of clicks and windows.
        worker: further settings of the workers.
        release: makes one, given a folder for it and its name; and a seed, for later ones.
    """
    name = f"t{uuid.uuid4().hex[:10]}"
    base, made = load_settings(), release(folder, name)
    settings = base.model_copy(
        update={
            "kafka": base.kafka.model_copy(
                update={
                    "bootstrap_servers": bootstrap_servers,
                    "clicks_topic": f"{name}.clicks",
                    "windows_topic": f"{name}.windows",
                    "dead_letters_topic": f"{name}.dead-letters",
                    "releases_topic": f"{name}.releases",
                    "items_topic": f"{name}.items",
                }
            ),
            "milvus": base.milvus.model_copy(update={"uri": milvus_uri, "timeout_s": 60.0}),
            "worker": base.worker.model_copy(
                update={
                    "group_id": name,
                    "http_port": 0,
                    "max_batch_clicks": 64,
                    "click_retention_s": 100 * 365 * 86_400.0,  # the tests' clicks are old
                    **worker,
                }
            ),
            "releases": base.releases.model_copy(
                update={"url": str(folder / "releases"), "cache": str(folder / "cache")}
            ),
            "window_length": made.manifest.window_length,
        }
    )
    create_topics(settings, partitions=partitions, replication=1)
    deployment = Deployment(settings, made, partitions, folder, release)
    index = InterestIndex(settings.milvus)
    publish(deployment.release, settings, index)
    try:
        yield deployment
    except BaseException:
        with suppress(Unavailable):  # a store out of order must not hide what happened
            index.drop_release(name)
        raise
    else:
        index.drop_release(name)
    finally:
        index.close()


def random_clicks(n: int, *, users: int = 40, seed: int = 0) -> list[Click]:
    """Clicks with all that traffic has: late, repeated, on the same instant, on unknown items."""
    rng = random.Random(seed)  # noqa: S311  nothing secret
    clicks: list[Click] = []
    for number in range(n):
        if clicks and rng.random() < 0.1:
            clicks.append(rng.choice(clicks))
            continue
        item = rng.randint(1, ITEMS + 10)  # some items are unknown to the release
        late = rng.choice((0, 0, 0, 50, 400))
        user = f"user-{int(users * rng.random() ** 2)}"
        clicks.append(Click(user, f"item-{item}", T0 + (number - late) // 3))
    return clicks


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Look again and again until something holds.

    Raises:
        TimeoutError: it did not within the deadline.
    """
    if not eventually(true, DEADLINE_S):
        raise TimeoutError(f"waited {DEADLINE_S:g} s for {what}")


def end(processes: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Ask processes to stop, and wait; returns their exit codes."""
    for process in processes:
        process.terminate()
    return [process.wait(DEADLINE_S) for process in processes]
