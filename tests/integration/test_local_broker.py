"""The local broker is a real Kafka, keeps its data, and goes when its owner does."""

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic

from deploy.guarded_process import ServiceError
from deploy.kafka_distribution import JavaKafka, kafka_version
from deploy.local_broker import EXTERNAL, LocalBroker
from tests.processes import end, eventually, is_running, listening, start_owner

OWNER = """
import sys, time
from pathlib import Path
from deploy.local_broker import LocalBroker
broker = LocalBroker(Path(sys.argv[1]) if sys.argv[1:] else None)
broker.start()
print(broker.pid, broker.data, flush=True)
time.sleep(600)
"""


# Stands in for Docker: runs the image's scripts with Java, on the folder that would be mounted.
DOCKER = """#!{python}
import os, sys
from pathlib import Path
words = sys.argv[1:]
with open({calls!r}, "a") as calls:
    print(*words, file=calls)
if words[0] != "run":
    sys.exit()
folder = Path(words[words.index("--volume") + 1].removesuffix(":/data"))
program, *rest = words[words.index({image!r}) + 1:]
mains = {{"kafka-storage.sh": "kafka.tools.StorageTool", "kafka-server-start.sh": "kafka.Kafka"}}
text = (folder / "server.properties").read_text()
outside = folder / "outside.properties"
outside.write_text(text.replace("/data/", str(folder) + "/").replace("0.0.0.0", "127.0.0.1"))
rest = [word.replace("/data/server.properties", str(outside)) for word in rest]
java = [{java!r}, "-Xmx256m", "-cp", {jars!r}, mains[os.path.basename(program)]]
os.execv(java[0], [*java, *rest])
"""

INSTALL = """
import os, sys
from pathlib import Path
from deploy.kafka_distribution import JavaKafka
print("asks", flush=True)
JavaKafka.find(Path(sys.argv[1]), 256, os.environ).install(lambda message: None)
"""

# Stands in for Maven: fetches a jar when it may.
MAVEN = """#!/bin/sh
echo called >> {calls}
until [ -e {go} ]; do sleep 0.05; done
for word; do
    case $word in -DoutputDirectory=*) touch "${{word#*=}}/kafka.jar" ;; esac
done
"""


@pytest.fixture(autouse=True)
def _own_broker(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """These tests are about brokers of ours, whatever broker the other tests use."""
    monkeypatch.delenv(EXTERNAL, raising=False)


def create_topic(address: str) -> str:
    topic = f"test-{uuid.uuid4().hex}"
    admin = KafkaAdminClient(bootstrap_servers=address)
    admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
    admin.close()
    return topic


def produce(address: str, topic: str, value: bytes) -> None:
    producer = KafkaProducer(bootstrap_servers=address)
    producer.send(topic, value).get(timeout=30)
    producer.close()


def consume(address: str, topic: str, count: int) -> list[bytes]:
    consumer = KafkaConsumer(
        bootstrap_servers=address, auto_offset_reset="earliest", consumer_timeout_ms=30_000
    )
    consumer.assign([TopicPartition(topic, 0)])
    values = [record.value for record in itertools.islice(consumer, count)]
    consumer.close()
    return values


def test_what_is_produced_is_consumed(broker: LocalBroker) -> None:
    """A record goes in and comes out."""
    topic = create_topic(broker.bootstrap_servers)
    produce(broker.bootstrap_servers, topic, b"one")
    assert consume(broker.bootstrap_servers, topic, 1) == [b"one"]


def test_data_survives_a_crash_and_a_stop(tmp_path: Path) -> None:
    """After SIGKILL and after a clean stop the records are there, at the same address."""
    with LocalBroker(tmp_path) as broker:
        address = broker.bootstrap_servers
        topic = create_topic(address)
        produce(address, topic, b"one")
        broker.kill()
        assert not broker.running
        broker.start()
        assert broker.bootstrap_servers == address
        produce(address, topic, b"two")
        broker.stop()
        broker.start()
        assert consume(address, topic, 2) == [b"one", b"two"]
    with LocalBroker(tmp_path) as another:
        assert consume(another.bootstrap_servers, topic, 2) == [b"one", b"two"]


def test_only_this_machine_can_connect(tmp_path: Path) -> None:
    """Broker and controller listen on 127.0.0.1 and nowhere else; one folder, one broker."""
    with LocalBroker(tmp_path) as broker:
        assert listening(broker.pid) == {"127.0.0.1"}
        with pytest.raises(ServiceError, match=f"in use by another server .*{os.getpid()}"):
            LocalBroker(tmp_path).start()


@pytest.mark.parametrize("given", [True, False], ids=["given folder", "temporary folder"])
def test_it_ends_with_its_owner(tmp_path: Path, given: bool) -> None:
    """When the owner is killed outright, the server goes, and a temporary folder with it."""
    owner, (pid, data) = start_owner(OWNER, *([str(tmp_path)] if given else []))
    try:
        assert is_running(int(pid))
    finally:
        end(owner)
    assert eventually(lambda: not is_running(int(pid)))
    if given:
        assert (tmp_path / "server.log").exists()
    else:
        assert eventually(lambda: not Path(data).exists())


def test_a_successor_waits_for_what_a_killed_owner_left(tmp_path: Path) -> None:
    """The same folder can be used at once after its owner was killed."""
    owner, (_, _) = start_owner(OWNER, str(tmp_path))
    end(owner)
    with LocalBroker(tmp_path) as broker:
        assert broker.running


def test_it_runs_in_the_foreground(tmp_path: Path) -> None:
    """``python -m deploy.local_broker`` prints the address, and ends cleanly when asked to."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.local_broker", "--data", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        address = process.stdout.readline().strip()
        topic = create_topic(address)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        end(process)
    assert process.returncode == 0
    with LocalBroker(tmp_path) as broker:
        admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
        assert topic in admin.list_topics()
        admin.close()


def test_a_server_that_was_killed_by_others_can_be_started_again(tmp_path: Path) -> None:
    """Its end is noticed, and the next start is as after a kill."""
    with LocalBroker(tmp_path) as broker:
        os.kill(broker.pid, signal.SIGKILL)
        assert eventually(lambda: not broker.running)
        broker.start()
        assert create_topic(broker.bootstrap_servers)


def test_a_failed_start_quotes_the_log(tmp_path: Path) -> None:
    """When the server ends while starting, the error says so in Kafka's own words."""
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "meta.properties").write_text("version=99\n")
    with pytest.raises(ServiceError, match=r"(?s)ended while starting.*meta\.properties"):
        LocalBroker(tmp_path).start()


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    """The error names the port, whatever answers there; a port picked by itself is another."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ServiceError, match=f"cannot use port {port}"):
            LocalBroker(tmp_path, port=port).start()


def test_an_external_broker_is_left_alone() -> None:
    """With an address given there is nothing to start, stop or kill."""
    with LocalBroker(environment={EXTERNAL: "kafka.example:9092"}) as broker:
        assert broker.running
        assert broker.bootstrap_servers == "kafka.example:9092"
        with pytest.raises(ServiceError, match="not ours"):
            broker.kill()


def test_when_nothing_can_serve_the_error_lists_the_three_ways(tmp_path: Path) -> None:
    """The message names the setting, Java with Maven, and Docker, each with what is missing."""
    with pytest.raises(ServiceError) as error:
        LocalBroker(environment={"PATH": str(tmp_path)}).start()
    setting, java, docker = str(error.value).splitlines()[1:]
    assert EXTERNAL in setting
    assert "no java on PATH" in java
    assert "no docker on PATH" in docker


def test_what_was_found_is_told_from_what_is_missing(tmp_path: Path) -> None:
    """Java without Maven and Docker without an engine are named as such."""
    java, docker = tmp_path / "java", tmp_path / "docker"
    found = shutil.which("java")
    assert found
    java.symlink_to(found)
    docker.write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2\nexit 1\n")
    docker.chmod(0o755)
    environment = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with pytest.raises(ServiceError) as error:
        LocalBroker(environment=environment).start()
    assert f"found {java}, but no mvn on PATH" in str(error.value)
    assert f"found {docker}, but no engine answers (Cannot connect" in str(error.value)


def test_docker_serves_where_java_does_not(tmp_path: Path, broker: LocalBroker) -> None:
    """The container gets the data folder and a port on loopback, and never outlives its client."""
    assert broker.running  # so the jars are here
    data, calls, docker = tmp_path / "data", tmp_path / "calls", tmp_path / "docker"
    java = JavaKafka.find(data, 256, os.environ)
    image = f"apache/kafka:{kafka_version()}"
    names = {"calls": str(calls), "image": image, "java": java.java, "jars": f"{java.jars}/*"}
    docker.write_text(DOCKER.format(python=sys.executable, **names))
    docker.chmod(0o755)
    with LocalBroker(data, environment={"PATH": str(tmp_path)}) as server:
        topic = create_topic(server.bootstrap_servers)
        server.kill()
        server.start()
        produce(server.bootstrap_servers, topic, b"one")
        assert consume(server.bootstrap_servers, topic, 1) == [b"one"]
    said = calls.read_text().splitlines()
    started = [line for line in said if "kafka-server-start.sh" in line]
    assert len(started) == 2
    assert all(f"--publish 127.0.0.1:{server.port}:{server.port} {image}" in one for one in started)
    assert sum(line.startswith("rm --force mindstream-kafka-") for line in said) == 2


def test_an_old_java_is_refused(tmp_path: Path) -> None:
    """Kafka 4 needs Java 17; an older one is named with its version."""
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    java.chmod(0o755)
    with pytest.raises(ServiceError, match=r"java is not Java 17 or later .*11\.0\.2"):
        LocalBroker(environment={"PATH": str(tmp_path)}).start()


def test_two_that_start_at_once_on_a_clean_machine_fetch_the_jars_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two processes of these tests do: the second waits for the first one's."""
    calls, go, maven = tmp_path / "calls", tmp_path / "go", tmp_path / "mvn"
    maven.write_text(MAVEN.format(calls=calls, go=go))
    maven.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    both = [start_owner(INSTALL, str(tmp_path / "data"))[0] for _ in range(2)]
    try:
        assert eventually(calls.exists)
        assert not eventually(lambda: calls.read_text().count("called") > 1, within_s=1.0)
        go.touch()
        assert [one.wait(60) for one in both] == [0, 0]
    finally:
        go.touch()
        for one in both:
            end(one)
    assert calls.read_text() == "called\n"
    assert len(list((tmp_path / "cache").rglob("kafka.jar"))) == 1
