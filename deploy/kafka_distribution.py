"""Ways to run a Kafka server on this machine: Java with jars that Maven resolves, or Docker."""

import hashlib
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deploy.cache import build_once, cache_root
from deploy.guarded_process import ServiceError
from deploy.loopback import HOST

_HERE = Path(__file__).parent / "kafka"
_POM = _HERE / "pom.xml"
_JAVA_AT_LEAST = 17  # Kafka 4 brokers


class Missing(Exception):  # noqa: N818  (not an error: the next way is tried)
    """What a way to run Kafka would need and this machine lacks."""


class KafkaDistribution(Protocol):
    """Something that can run a Kafka server from a data folder with a ``server.properties``."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def listen_host(self) -> str:
        """The address that the server binds to, as the server sees it."""

    @property
    def folder(self) -> Path:
        """The data folder, as the server sees it."""

    def install(self, notify: Callable[[str], None]) -> None:
        """Fetch what is needed, once per machine."""

    def format(self, cluster_id: str, options: Sequence[str]) -> None:
        """Prepare the storage folder named in ``server.properties``; harmless when it is ready.

        Args:
            cluster_id: of the new cluster.
            options: more for Kafka's storage tool.
        """

    def command(self, ports: Sequence[int]) -> Sequence[str]:
        """The command that runs the server in the foreground; clients connect to these ports."""

    def afterwards(self) -> Sequence[str]:
        """A command to run once the server's command has ended; empty for none."""


def kafka_version() -> str:
    """The Kafka release that the pom asks for."""
    version = ET.parse(_POM).getroot().findtext(".//{*}kafka.version")  # noqa: S314  (our own file)
    assert version
    return version


@dataclass(frozen=True)
class JavaKafka:
    """Kafka as a Java process of this machine."""

    java: str
    jars: Path
    mvn: str | None
    folder: Path
    heap_mb: int
    name: str = "Java"
    listen_host: str = HOST

    @classmethod
    def find(cls, folder: Path, heap_mb: int, environment: Mapping[str, str]) -> "JavaKafka":
        """Look for Java, and for Maven unless the jars are here already.

        Raises:
            Missing: with what was looked for and what was found.
        """
        home, path = environment.get("JAVA_HOME"), environment.get("PATH")
        java = shutil.which("java", path=str(Path(home) / "bin") if home else path)
        where = f"JAVA_HOME ({home})" if home else "PATH"
        if java is None:
            raise Missing(f"no java on {where}; install Java {_JAVA_AT_LEAST} or later")
        found = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
        version = re.search(r'version "(\d+)', found.stderr)
        if version is None or int(version[1]) < _JAVA_AT_LEAST:
            said = (found.stderr.strip().splitlines() or ["nothing"])[0]
            raise Missing(f"{java} is not Java {_JAVA_AT_LEAST} or later (it says: {said})")
        digest = hashlib.sha256(_POM.read_bytes()).hexdigest()[:8]
        jars = cache_root(environment) / f"kafka-{kafka_version()}-{digest}"
        mvn = shutil.which("mvn", path=path)
        if mvn is None and not (jars / ".complete").exists():
            raise Missing(f"found {java}, but no mvn on PATH to fetch Kafka's jars; install Maven")
        return cls(java=java, jars=jars, mvn=mvn, folder=folder, heap_mb=heap_mb)

    def install(self, notify: Callable[[str], None]) -> None:
        """Resolve the jars with Maven into the cache."""
        build_once(self.jars, lambda folder: self._resolve(folder, notify))

    def _resolve(self, folder: Path, notify: Callable[[str], None]) -> None:
        assert self.mvn
        notify(f"fetching Apache Kafka {kafka_version()} with Maven (45 MB, once)")
        command = [self.mvn, "-B", "--strict-checksums", "-f", str(_POM)]
        command += ["dependency:copy-dependencies", "-DincludeScope=runtime"]
        lines: list[str] = []
        with subprocess.Popen(
            [*command, f"-DoutputDirectory={folder}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as mvn:
            assert mvn.stdout
            for line in mvn.stdout:
                lines.append(line.rstrip())
                if jar := re.search(r"Downloaded .*/([^/]+\.jar) ", line):
                    notify(f"fetched {jar[1]}")
        if mvn.returncode:
            raise ServiceError("Maven could not fetch Kafka:\n" + "\n".join(lines[-30:]))

    def format(self, cluster_id: str, options: Sequence[str]) -> None:
        """Run Kafka's storage tool."""
        properties = str(self.folder / "server.properties")
        tool = self._java("kafka.tools.StorageTool", "format", "--ignore-formatted")
        done = subprocess.run(
            [*tool, f"--cluster-id={cluster_id}", "--config", properties, *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ServiceError(f"cannot format {self.folder}:\n{done.stdout}{done.stderr}")

    def command(self, ports: Sequence[int]) -> Sequence[str]:
        """Java with Kafka's main class."""
        return self._java("kafka.Kafka", str(self.folder / "server.properties"))

    def afterwards(self) -> Sequence[str]:
        """Nothing: the process is all there is."""
        return ()

    def _java(self, *arguments: str) -> list[str]:
        return [
            self.java,
            f"-Xmx{self.heap_mb}m",
            "-XX:+UseSerialGC",
            "-XX:+ExitOnOutOfMemoryError",
            "-XX:-UsePerfData",
            "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={_HERE / 'log4j2.properties'}",
            "-cp",
            f"{self.jars}/*",
            *arguments,
        ]


@dataclass(frozen=True)
class DockerKafka:
    """Kafka's own image in a Docker container, on the same data folder."""

    docker: str
    data: Path  # the folder on this machine
    heap_mb: int
    name: str = "Docker"
    listen_host: str = "0.0.0.0"  # noqa: S104  (of the container; published on loopback alone)
    folder: Path = Path("/data")

    @classmethod
    def find(cls, data: Path, heap_mb: int, environment: Mapping[str, str]) -> "DockerKafka":
        """Look for the client and ask its engine for an answer.

        Raises:
            Missing: with what was looked for and what was found.
        """
        docker = shutil.which("docker", path=environment.get("PATH"))
        if docker is None:
            raise Missing("no docker on PATH; install Docker")
        try:
            asked = subprocess.run(
                [docker, "version", "--format", "{{.Server.Version}}"],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Missing(f"found {docker}, but its engine did not answer in 10 s") from None
        if asked.returncode:
            said = " ".join(asked.stderr.split()) or f"exit status {asked.returncode}"
            raise Missing(f"found {docker}, but no engine answers ({said})")
        return cls(docker=docker, data=data, heap_mb=heap_mb)

    @property
    def image(self) -> str:
        """The image with the same Kafka release as the jars."""
        return f"apache/kafka:{kafka_version()}"

    @property
    def container(self) -> str:
        """The container's name: one per data folder."""
        return "mindstream-kafka-" + hashlib.sha256(bytes(self.data)).hexdigest()[:12]

    def install(self, notify: Callable[[str], None]) -> None:
        """Pull the image unless the engine has it."""
        inspect = [self.docker, "image", "inspect", self.image]
        if subprocess.run(inspect, capture_output=True, check=False).returncode == 0:
            return
        notify(f"pulling {self.image} (once)")
        pull = subprocess.run(
            [self.docker, "pull", self.image], capture_output=True, text=True, check=False
        )
        if pull.returncode:
            raise ServiceError(f"cannot pull {self.image}:\n{pull.stderr}")

    def format(self, cluster_id: str, options: Sequence[str]) -> None:
        """Run Kafka's storage tool in a container."""
        tool = ["/opt/kafka/bin/kafka-storage.sh", "format", "--ignore-formatted"]
        tool += [f"--cluster-id={cluster_id}", "--config", str(self.folder / "server.properties")]
        done = subprocess.run(
            [*self._run(), self.image, *tool, *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ServiceError(f"cannot format {self.data}:\n{done.stdout}{done.stderr}")

    def command(self, ports: Sequence[int]) -> Sequence[str]:
        """``docker run`` in the foreground, which passes signals on to the server."""
        start = ["/opt/kafka/bin/kafka-server-start.sh", str(self.folder / "server.properties")]
        publish = [word for port in ports for word in ("--publish", f"{HOST}:{port}:{port}")]
        return [*self._run(), "--name", self.container, *publish, self.image, *start]

    def afterwards(self) -> Sequence[str]:
        """Remove the container, which outlives its client when that is killed."""
        return [self.docker, "rm", "--force", self.container]

    def _run(self) -> list[str]:
        return [
            *[self.docker, "run", "--rm", "--user", f"{os.getuid()}:{os.getgid()}"],
            *["--volume", f"{self.data}:{self.folder}", "--env", f"LOG_DIR={self.folder}/logs"],
            *["--env", f"KAFKA_HEAP_OPTS=-Xmx{self.heap_mb}m"],
        ]
