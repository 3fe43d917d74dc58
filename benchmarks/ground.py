"""What the benchmarks share: a broker, stores, a release of real size, traffic of real shape."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deploy.local_broker import LocalBroker
from deploy.local_milvus import LocalMilvusLite, LocalMilvusServer
from deploy.loopback import free_ports
from encoder.click import Click
from encoder.item_fields import ItemFieldVectors
from encoder.kafka_client import producer
from encoder.release import Release
from mindstream.worker_process import WorkerProcess
from tests.deployment import T0, Deployment, deployed
from tests.small_release import make_small_release

StoreName = Literal["lite", "server"]

LENGTH, INTERESTS, WIDTH = 50, 4, 64
ITEMS = 100_000
PARTITIONS = 8
_READY_S = 120.0


@dataclass
class Ground:
    """Starts what a benchmark asks for, once; all of it ends with the stack.

    Attributes:
        scale: by which sizes are multiplied.
        seed: of what is drawn.
    """

    stack: ExitStack
    scale: float = 1.0
    seed: int = 0
    _broker: LocalBroker | None = None
    _stores: dict[str, LocalMilvusLite | LocalMilvusServer] = field(default_factory=dict)

    @property
    def broker(self) -> LocalBroker:
        """A real broker."""
        if self._broker is None:
            self._broker = self.stack.enter_context(LocalBroker())
        return self._broker

    def store(self, name: StoreName) -> LocalMilvusLite | LocalMilvusServer:
        """Milvus Lite behind a port of its own, or a real Milvus server."""
        if name not in self._stores:
            started = LocalMilvusLite() if name == "lite" else LocalMilvusServer()
            self._stores[name] = self.stack.enter_context(started)
        return self._stores[name]

    @property
    def servers(self) -> dict[str, int]:
        """Process ids of what was started, by name."""
        started = {f"milvus-{name}": store.pid for name, store in self._stores.items()}
        return started | ({"kafka": self._broker.pid} if self._broker is not None else {})

    @contextmanager
    def apart(self, store: StoreName) -> Iterator[None]:
        """Meanwhile half of the cores are the store's alone, and all else has the other half."""
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            raise SystemExit("to keep a store apart takes two cores")
        half = len(cores) // 2
        _keep_on(self.store(store).pid, cores[half:])
        others = (self.broker.pid, os.getpid())  # what this process starts from now on, too
        for pid in others:
            _keep_on(pid, cores[:half])
        try:
            yield
        finally:
            for pid in (self.store(store).pid, *others):
                _keep_on(pid, cores)

    def size(self, full: int) -> int:
        """A size, scaled."""
        return max(1, int(full * self.scale))

    @contextmanager
    def deployment(
        self,
        store: StoreName,
        release: Callable[[Path, str], Release] | None = None,
        **worker: object,
    ) -> Iterator[Deployment]:
        """Topics and a published release; the worker's settings are the defaults."""
        settings = {"max_batch_clicks": default_batch(), **worker}
        with (
            tempfile.TemporaryDirectory(prefix="mindstream-bench-") as folder,
            deployed(
                self.broker.bootstrap_servers,
                self.store(store).uri,
                Path(folder),
                partitions=PARTITIONS,
                worker=settings,
                release=release or make_release,
            ) as one,
        ):
            yield one


def _keep_on(pid: int, cores: Sequence[int]) -> None:
    """Let all threads of a process run on these cores only."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread.name), cores)


def default_batch() -> int:
    """Most clicks of a batch, where nothing else is set."""
    from encoder.settings import WorkerSettings

    return WorkerSettings().max_batch_clicks


@contextmanager
def serving(deployment: Deployment) -> Iterator[WorkerProcess]:
    """A worker process, once it serves partitions."""
    (port,) = free_ports(1)
    settings = deployment.settings
    settings = settings.model_copy(
        update={"worker": settings.worker.model_copy(update={"http_port": port})}
    )
    worker = WorkerProcess(settings, deployment.folder / f"worker-{port}.log")
    try:
        worker.start(ready_within_s=_READY_S)
        yield worker
    finally:
        worker.stop()


def make_release(
    folder: Path, name: str, item_fields: ItemFieldVectors | None = None, marks: int = 0
) -> Release:
    """An untrained release of real size; its items are `item-1` and so on."""
    return make_small_release(
        folder / name,
        items=ITEMS,
        width=WIDTH,
        interests=INTERESTS,
        window_length=LENGTH,
        name=name,
        item_fields=item_fields,
        marks=marks,
    )


class Traffic:
    """Clicks as columns: a few users and items have most of them."""

    def __init__(self, clicks: int, users: int, seed: int) -> None:
        """Draw them.

        Args:
            clicks: how many.
            users: how many there are; each has at least a small chance.
            seed: another draw.
        """
        rng = np.random.default_rng(seed)
        self.user: NDArray[np.int64] = (users * rng.random(clicks) ** 2).astype(np.int64)
        self.item: NDArray[np.int64] = (ITEMS * rng.random(clicks) ** 3).astype(np.int64) + 1
        self.timestamp_ms: NDArray[np.int64] = T0 + np.arange(clicks, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.user)

    def clicks(self) -> list[Click]:
        """As objects."""
        columns = zip(
            self.user.tolist(), self.item.tolist(), self.timestamp_ms.tolist(), strict=True
        )
        return [Click(f"user-{user:08d}", f"item-{item}", at) for user, item, at in columns]

    def records(self) -> Iterator[tuple[bytes, bytes, int]]:
        """Key, value and timestamp of each record."""
        columns = zip(
            self.user.tolist(), self.item.tolist(), self.timestamp_ms.tolist(), strict=True
        )
        for user, item, timestamp in columns:
            yield (
                b"user-%08d" % user,
                b'{"user_id":"user-%08d","item_id":"item-%d","timestamp":%d}'
                % (user, item, timestamp),
                timestamp,
            )

    def produce(self, deployment: Deployment) -> None:
        """Put all of them on the topic."""
        kafka = deployment.settings.kafka
        client = producer(kafka, linger_ms=20, batch_size=1 << 18)
        for key, value, timestamp in self.records():
            client.send(kafka.clicks_topic, key=key, value=value, timestamp_ms=timestamp)
        client.flush()
        client.close()
