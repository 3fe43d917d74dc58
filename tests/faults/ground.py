"""Where faults are injected: a broker, stores, deployments, and what became of the clicks."""

import itertools
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deploy.local_broker import LocalBroker
from deploy.local_milvus import LocalMilvusLite
from encoder.release import Release
from mindstream.audit import Audit
from tests.deployment import Deployment, deployed, small_release
from tests.faults.services import RefusingServer, SharedServers
from tests.faults.worker import Worker

SESSION_S = 6.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a fault did, and what the comparison with a plain fold found afterwards.

    Attributes:
        injected: how often the fault was done.
        audit: of the deployment, after everything was consumed.
        note: anything measured on the way.
    """

    injected: int
    audit: Audit
    note: str = ""

    @property
    def clicks(self) -> int:
        """Records on the clicks topic but for tombstones."""
        return self.audit.clicks + len(self.audit.rejected)

    @property
    def lost(self) -> int:
        """Clicks missing from windows, and rejected records that were not set aside."""
        return self.audit.lost_clicks + len(self.audit.unset_aside)

    @property
    def duplicated(self) -> int:
        """Records that were set aside more than once, or without being rejected."""
        return len(self.audit.set_aside_again)

    @property
    def wrong_rows(self) -> int:
        """Rows that differ from the fold's, windows, and items that are retrieved."""
        audit = self.audit
        return audit.wrong_rows + len(audit.wrong_windows) + len(audit.wrong_items)


@dataclass
class Ground:
    """What the faults share.

    Attributes:
        broker: runs; a fault that ends it starts it again.
        folder: for logs.
        rng: draws what is random.
        quick: whether to take a few minutes' worth only.
        shared: servers that are started when a fault first asks for them.
        stack: what one fault starts on the way ends with it.
    """

    broker: LocalBroker
    lite: LocalMilvusLite
    folder: Path
    rng: random.Random
    quick: bool
    shared: SharedServers
    stack: ExitStack
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def times(self, quick: int, full: int) -> int:
        """How often to do something."""
        return quick if self.quick else full

    def seed(self) -> int:
        """A seed drawn from ours."""
        return self.rng.randrange(2**32)

    def fresh_folder(self) -> Path:
        """A folder of its own."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def milvus_server(self) -> RefusingServer:
        """A real Milvus server, which the faults share from the first that needs it on."""
        return self.shared.milvus_server()

    @contextmanager
    def deployment(
        self,
        *,
        partitions: int = 2,
        milvus_uri: str = "",
        release: Callable[..., Release] = small_release,
        **worker: object,
    ) -> Iterator[Deployment]:
        """Topics and a release; sessions are short, so that the dead are soon given up."""
        settings = {"session_timeout_s": SESSION_S, "max_rejected_share": 1.0, **worker}
        folder = self.fresh_folder()
        uri = milvus_uri or self.lite.uri
        servers = self.broker.bootstrap_servers
        with deployed(
            servers, uri, folder, partitions=partitions, worker=settings, release=release
        ) as one:
            yield one

    def worker(
        self,
        deployment: Deployment,
        *fate: str,
        instance: str = "",
        **environment: str,
    ) -> Worker:
        """Start a worker, with further variables in its environment."""
        log = deployment.folder / f"worker-{next(self._numbers):03d}.log"
        if instance:
            environment["MINDSTREAM_WORKER__INSTANCE_ID"] = instance
        started = Worker(deployment.settings, log, *fate, **environment)
        self.stack.callback(started.kill)
        return started

    def consume(self, deployment: Deployment) -> None:
        """Let a worker without a fate consume what is left."""
        worker = self.worker(deployment, instance="w")
        worker.wait_for("partitions.taken")
        deployment.wait_until_consumed()
        deployment.wait_until_filled()
        worker.end()

    def close(self, deployment: Deployment, injected: int, note: str = "") -> Outcome:
        """Consume what is left, and compare."""
        self.consume(deployment)
        return Outcome(injected, deployment.audit(), note)


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the report."""

    name: str
    run: Callable[[Ground], Outcome]
