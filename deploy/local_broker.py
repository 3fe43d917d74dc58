"""A real single-node Apache Kafka for development, the demo and the tests."""

import argparse
import base64
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from deploy.broker_security import MUTUAL_TLS, SCRAM, BrokerSecurity
from deploy.guarded_process import ServiceError, tail
from deploy.kafka_distribution import DockerKafka, JavaKafka, KafkaDistribution, Missing
from deploy.local_service import Launch, LocalService
from deploy.loopback import HOST

EXTERNAL = "MINDSTREAM_KAFKA__BOOTSTRAP_SERVERS"


class LocalBroker(LocalService):
    """Apache Kafka in KRaft mode, run by Java or Docker, whichever is there.

    A broker that somebody else runs can stand in for it: then there is nothing to start or stop,
    and this object only tells the address.
    """

    name: ClassVar[str] = "Kafka"
    ports_needed = 2

    def __init__(
        self,
        data: Path | None = None,
        *,
        port: int | None = None,
        bootstrap_servers: str | None = None,
        notify: Callable[[str], None] = lambda message: None,
        heap_mb: int = 512,
        environment: Mapping[str, str] = os.environ,
        security: BrokerSecurity | None = None,
    ) -> None:
        """Describe the broker; nothing runs before `start`.

        Args:
            data: see `LocalService`.
            port: see `LocalService`.
            bootstrap_servers: a running broker to use instead; by default the value of
                ``MINDSTREAM_KAFKA__BOOTSTRAP_SERVERS`` in ``environment``, if it has one.
            notify: see `LocalService`.
            heap_mb: the server's heap, in MiB.
            environment: where Java, Maven and Docker are looked for.
            security: adds listeners for SCRAM and for mutual TLS, on ports of their own; its users
                are created with the data.
        """
        super().__init__(data, port=port, notify=notify)
        self._security = security
        if security:
            self.ports_needed += 2
        self._external = bootstrap_servers or environment.get(EXTERNAL)
        self._heap_mb = heap_mb
        self._environment = environment
        self._kafka: KafkaDistribution | None = None

    @property
    def external(self) -> bool:
        """Whether somebody else runs the broker."""
        return bool(self._external)

    @property
    def bootstrap_servers(self) -> str:
        """``host:port`` for clients; known from the first start on."""
        return self._external or f"{HOST}:{self.port}"

    @property
    def scram_servers(self) -> str:
        """``host:port`` for clients with a user's name and password, over TLS.

        Raises:
            ServiceError: the broker has no `BrokerSecurity`, or was not started yet.
        """
        return self._secured(2)

    @property
    def mutual_tls_servers(self) -> str:
        """``host:port`` for clients with a certificate.

        Raises:
            ServiceError: the broker has no `BrokerSecurity`, or was not started yet.
        """
        return self._secured(3)

    def _secured(self, index: int) -> str:
        if len(self._ports) <= index:
            raise ServiceError("no such listener: give the broker a BrokerSecurity and start it")
        return f"{HOST}:{self._ports[index]}"

    @property
    def running(self) -> bool:
        """Whether the server's process is there; always true of an external broker."""
        return self.external or super().running

    def start(self) -> None:
        """Start the server and wait until it answers clients; nothing for an external broker.

        Raises:
            ServiceError: nothing on this machine can run Kafka (the message lists what would), the
                data folder is in use, or the server did not come up (the message quotes its log).
        """
        if not self.external:
            super().start()

    def kill(self) -> None:
        """End the server with SIGKILL, as a crash would.

        Raises:
            ServiceError: it was not started, or is not ours to kill.
        """
        if self.external:
            raise ServiceError(f"the broker at {self._external} is not ours to kill")
        super().kill()

    def _install(self) -> None:
        self._kafka = self._find()
        self._kafka.install(self._notify)

    def _find(self) -> KafkaDistribution:
        try:
            return JavaKafka.find(self.data, self._heap_mb, self._environment)
        except Missing as missing:
            java = missing
        try:
            return DockerKafka.find(self.data, self._heap_mb, self._environment)
        except Missing as missing:
            docker = missing
        raise ServiceError(
            "no Kafka broker can be had; any one of these would do:\n"
            f"  1. a broker that already runs: set {EXTERNAL} to its host:port (it is not set)\n"
            f"  2. Java and Maven: {java}\n"
            f"  3. Docker: {docker}"
        )

    def _configure(self, ports: Sequence[int]) -> Launch:
        assert self._kafka
        port, controller_port, *secured = ports
        if self._security:
            self._security.write_files(self.data)
        settings = server_properties(
            {"PLAINTEXT": port, **dict(zip((SCRAM, MUTUAL_TLS), secured, strict=False))},
            controller_port,
            self._kafka.listen_host,
            self._kafka.folder / "log",
        )
        settings |= self._security.properties(self._kafka.folder) if self._security else {}
        (self.data / "server.properties").write_text(
            "".join(f"{name}={value}\n" for name, value in settings.items())
        )
        if not (self.data / "log" / "meta.properties").exists():
            cluster = self.data / "cluster_id"  # kept, so that a format cut short can be repeated
            if not cluster.exists():
                unique = base64.urlsafe_b64encode(uuid.uuid4().bytes)
                cluster.write_text(unique.decode().rstrip("="))
            options = self._security.format_options() if self._security else []
            self._kafka.format(cluster.read_text(), options)
        command = self._kafka.command([port, *secured])
        return Launch(command, afterwards=self._kafka.afterwards())

    def _serves(self, port: int) -> bool:
        try:
            admin = KafkaAdminClient(bootstrap_servers=f"{HOST}:{port}", bootstrap_timeout_ms=5_000)
        except KafkaError:
            return False
        try:
            admin.list_topics()
        except KafkaError:
            return False
        finally:
            admin.close()
        return True


_PROTOCOLS = {"PLAINTEXT": "PLAINTEXT", SCRAM: "SASL_SSL", MUTUAL_TLS: "SSL"}


def server_properties(
    ports: Mapping[str, int], controller_port: int, listen_host: str, log_dir: Path
) -> dict[str, object]:
    """The configuration of a single node that is broker and controller at once.

    Args:
        ports: of the listeners for clients, by name.
        controller_port: where the controller listens.
        listen_host: the address that the listeners bind to.
        log_dir: folder of the data.
    """
    listeners = [f"{name}://{listen_host}:{port}" for name, port in ports.items()]
    protocols = [f"{name}:{_PROTOCOLS[name]}" for name in ports]
    return {
        "process.roles": "broker,controller",
        "node.id": 1,
        # Fixed voters rather than a dynamic quorum: the port may differ at the next start.
        "controller.quorum.voters": f"1@{HOST}:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": ",".join([*listeners, f"CONTROLLER://{HOST}:{controller_port}"]),
        "advertised.listeners": ",".join(f"{name}://{HOST}:{port}" for name, port in ports.items()),
        "listener.security.protocol.map": ",".join([*protocols, "CONTROLLER:PLAINTEXT"]),
        "log.dirs": log_dir,
        # A misspelt topic is an error, not a new topic.
        "auto.create.topics.enable": "false",
        # Nothing disappears by itself; topics may still ask for less.
        "log.retention.ms": -1,
        "offsets.retention.minutes": 10 * 365 * 24 * 60,
        # One node, few partitions: they are created on first use.
        "offsets.topic.num.partitions": 3,
        "offsets.topic.replication.factor": 1,
        "transaction.state.log.num.partitions": 3,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.num.partitions": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        # No waiting for more members, and short sessions are allowed: tests kill theirs.
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 1_000,
        "group.consumer.min.session.timeout.ms": 1_000,
        "group.consumer.min.heartbeat.interval.ms": 200,
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": 1_000,
        # After a crash the controller lets the broker back in when its former self has timed out.
        "broker.session.timeout.ms": 3_000,
        "broker.heartbeat.interval.ms": 500,
        # The default is a quarter of the heap.
        "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
    }


def main() -> int:
    """Run a broker in the foreground until it is interrupted."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local_broker", description=__doc__)
    parser.add_argument("--port", type=int, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--data", type=Path, help="folder that keeps the data (default: none does)")
    options = parser.parse_args()
    asked: list[int] = []
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda number, _: asked.append(number))

    def say(message: str) -> None:
        sys.stderr.write(message + "\n")

    try:
        with LocalBroker(options.data, port=options.port, notify=say) as broker:
            sys.stdout.write(broker.bootstrap_servers + "\n")
            sys.stdout.flush()
            while not asked:
                time.sleep(0.2)
                if not broker.running:
                    raise ServiceError(f"Kafka ended; the end of its log:\n{tail(broker.log)}")
    except ServiceError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
