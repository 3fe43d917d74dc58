"""What the demonstration starts for itself: a folder, a broker, a store and topics of its own."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from deploy.guarded_process import FolderClaim
from deploy.local_broker import LocalBroker
from deploy.local_milvus import LocalMilvusLite
from deploy.loopback import free_ports
from encoder.errors import Misconfigured
from encoder.settings import MilvusSettings, Settings, load_settings
from encoder.topics import create_topics
from mindstream.progress import Waiting

_MARKER: Final = ".mindstream-demo"
_EXAMPLES: Final = 200_000  # to train on: about a minute's worth on two cores
_CLAIM_S: Final = 60.0  # for the services of a demonstration that was killed to end


def claim_folder(folder: Path) -> FolderClaim:
    """Empty the folder of an earlier demonstration; never anything else.

    Raises:
        Misconfigured: the folder holds something else.
        ServiceError: a demonstration is running in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not (folder / _MARKER).exists():
        raise Misconfigured(
            f"--folder {folder} is not empty and not a demonstration's; name another"
        )
    (folder / _MARKER).touch()
    claim = FolderClaim(folder, wait_s=_CLAIM_S, busy=f"a demonstration is running in {folder}")
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name not in {_MARKER, ".claim"}:
            entry.unlink()
    return claim


@contextmanager
def demo_services(folder: Path, partitions: int, waiting: Waiting) -> Iterator[Settings]:
    """A store and topics of this run's own; a broker, too, unless the environment names one."""
    with ExitStack() as stack:
        waiting.start("starting Kafka")
        broker = LocalBroker(folder / "kafka", notify=waiting.describe)
        stack.enter_context(broker)
        # Always its own: on a store that others read, it would point them at its release.
        waiting.start("starting Milvus Lite")
        store = LocalMilvusLite(folder / "milvus.db", notify=waiting.describe)
        stack.enter_context(store)
        base = load_settings()
        name = f"demo-{uuid.uuid4().hex[:8]}"
        kafka = base.kafka.model_copy(
            update={
                "bootstrap_servers": broker.bootstrap_servers,
                "clicks_topic": f"{name}.clicks",
                "windows_topic": f"{name}.windows",
                "dead_letters_topic": f"{name}.dead-letters",
                "releases_topic": f"{name}.releases",
                "items_topic": f"{name}.items",
            }
        )
        (http_port,) = free_ports(1)
        settings = base.model_copy(
            update={
                "kafka": kafka,
                "milvus": MilvusSettings(uri=store.uri, timeout_s=base.milvus.timeout_s),
                "worker": base.worker.model_copy(update={"group_id": name, "http_port": http_port}),
                "trainer": base.trainer.model_copy(
                    update={"examples": base.trainer.examples or _EXAMPLES}
                ),
                "releases": base.releases.model_copy(
                    update={"url": str(folder / "releases"), "cache": str(folder / "cache")}
                ),
            }
        )
        waiting.start("creating topics")
        create_topics(settings, partitions=partitions, replication=1)
        yield settings
