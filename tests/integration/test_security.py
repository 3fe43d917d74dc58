"""Kafka and Milvus with passwords, tokens and certificates, right ones and wrong ones."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
)

from deploy.broker_security import BrokerSecurity
from deploy.local_broker import LocalBroker
from deploy.local_milvus import LocalMilvusLite, LocalMilvusServer, MilvusSecurity
from encoder.errors import Misconfigured
from encoder.interest_index import InterestIndex
from encoder.interests import InterestRows
from encoder.kafka_client import admin_client
from encoder.milvus_client import close_embedded, milvus_client
from encoder.settings import KafkaSettings, MilvusSettings, Settings
from encoder.topics import check_topics
from mindstream.environment import child_environment
from mindstream.exit_codes import EXIT_MISCONFIGURED
from tests.certificates import Authority
from tests.deployment import Deployment, deployed, random_clicks, wait_until
from tests.processes import listening

PASSWORD = "correct-horse"  # noqa: S105
WRONG = "battery-staple"
PROMPT_S = 15.0  # half of what kafka-python spends on brokers that do not answer


@dataclass(frozen=True)
class Secured:
    """A broker with listeners for SCRAM and mutual TLS, and who is known to it."""

    broker: LocalBroker
    known: Authority
    unknown: Authority

    def scram(self, **changes: Any) -> dict[str, Any]:
        """Settings of a user with a password."""
        settings = {
            "bootstrap_servers": self.broker.scram_servers,
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_username": "worker",
            "sasl_password": PASSWORD,
            "ssl_cafile": str(self.known.file),
        }
        return settings | changes

    def mutual_tls(self, name: str = "admin", **changes: Any) -> dict[str, Any]:
        """Settings of a user with a certificate."""
        certificate, key = self.known.client(name)
        settings = {
            "bootstrap_servers": self.broker.mutual_tls_servers,
            "security_protocol": "SSL",
            "ssl_cafile": str(self.known.file),
            "ssl_certfile": str(certificate),
            "ssl_keyfile": str(key),
        }
        return settings | changes

    def grant(self, principal: str, rights: list[tuple[ResourceType, str, ACLOperation]]) -> None:
        """Allow a user some operations; names that end in `*` stand for all that begin so."""
        plain = KafkaSettings(bootstrap_servers=self.broker.bootstrap_servers)
        anything = ResourcePatternFilter(ResourceType.ANY, None, ACLResourcePatternType.ANY)
        asked = ACLFilter(principal, None, ACLOperation.ANY, ACLPermissionType.ANY, anything)
        granted = [_allowed(principal, *right) for right in rights]
        with admin_client(plain) as admin:
            admin.create_acls(granted)
            wait_until(lambda: len(admin.describe_acls(asked)[0]) == len(granted), "the ACLs")


def _allowed(principal: str, kind: ResourceType, name: str, operation: ACLOperation) -> ACL:
    pattern = (
        ACLResourcePatternType.PREFIXED if name.endswith("*") else ACLResourcePatternType.LITERAL
    )
    resource = ResourcePattern(kind, name.removesuffix("*"), pattern)
    return ACL(principal, "*", operation, ACLPermissionType.ALLOW, resource)


def worker_rights(settings: Settings) -> list[tuple[ResourceType, str, ACLOperation]]:
    """What docs/security.md says that a worker needs, and nothing else."""
    kafka, group = settings.kafka, settings.worker.group_id
    read, write = ACLOperation.READ, ACLOperation.WRITE
    return [
        (ResourceType.TOPIC, kafka.clicks_topic, read),
        (ResourceType.TOPIC, kafka.windows_topic, read),
        (ResourceType.TOPIC, kafka.windows_topic, write),
        (ResourceType.TOPIC, kafka.releases_topic, read),
        (ResourceType.TOPIC, kafka.releases_topic, write),
        (ResourceType.TOPIC, kafka.items_topic, read),
        (ResourceType.TOPIC, kafka.dead_letters_topic, write),
        (ResourceType.GROUP, group, read),
        (ResourceType.TRANSACTIONAL_ID, f"{group}-*", write),
    ]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("authorities")
    known, unknown = Authority(folder / "known"), Authority(folder / "unknown")
    certificate, key = known.server("127.0.0.1")
    security = BrokerSecurity(
        server=key.read_bytes() + certificate.read_bytes(),
        ca=known.file.read_bytes(),
        users={"worker": PASSWORD, "nobody": PASSWORD},
        super_users=[known.principal("admin")],
    )
    elsewhere = {k: v for k, v in os.environ.items() if not k.startswith("MINDSTREAM_")}
    with LocalBroker(security=security, environment=elsewhere) as broker:
        yield Secured(broker, known, unknown)


def with_kafka(settings: Settings, changes: dict[str, Any]) -> Settings:
    return settings.model_copy(
        update={"kafka": KafkaSettings(**(settings.kafka.model_dump() | changes))}
    )


def assert_store_is_the_fold(deployment: Deployment) -> None:
    found = deployment.audit()
    assert found.differences == 0, found.report()
    assert found.rows > 0


def start_worker(settings: Settings, log: Path) -> subprocess.Popen[bytes]:
    """`mindstream worker` as a process, its output in a file."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "mindstream", "worker"],
            env=child_environment(settings),
            stdout=output,
            stderr=output,
        )


# Kafka -------------------------------------------------------------------------------------


def test_a_worker_with_a_password_needs_only_the_rights_that_are_documented(
    secured: Secured, milvus_lite: LocalMilvusLite, tmp_path: Path
) -> None:
    """SCRAM over TLS: clicks become rows, a bad one a dead letter, with the ACLs of the docs."""
    address = secured.broker.bootstrap_servers
    with deployed(address, milvus_lite.uri, tmp_path, partitions=2) as everything:
        limited = replace(everything, settings=with_kafka(everything.settings, secured.scram()))
        with pytest.raises(Misconfigured, match=r"docs/security\.md"):
            check_topics(limited.settings.kafka)
        secured.grant("User:worker", worker_rights(limited.settings))
        everything.produce(random_clicks(300))
        everything.produce_raw([(b"u", b"{not json")])
        with limited.worker():
            everything.wait_until_consumed()
        assert_store_is_the_fold(everything)
        assert len(everything.dead_letters()) == 1


def test_a_missing_right_is_named(
    secured: Secured, milvus_lite: LocalMilvusLite, tmp_path: Path
) -> None:
    """Without the right to its transactional id a worker ends, saying what it was refused."""
    address = secured.broker.bootstrap_servers
    with deployed(address, milvus_lite.uri, tmp_path, partitions=1) as everything:
        user = secured.scram(sasl_username="nobody")
        limited = replace(everything, settings=with_kafka(everything.settings, user))
        secured.grant("User:nobody", worker_rights(limited.settings)[:-1])
        worker = start_worker(limited.settings, tmp_path / "log")
        assert worker.wait(60) == EXIT_MISCONFIGURED
        said = " ".join((tmp_path / "log").read_text().split())
        assert re.search("TransactionalIdAuthorizationFailed.*ACLs", said), said


def test_everything_works_over_mutual_tls(
    secured: Secured,
    milvus_lite: LocalMilvusLite,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Topics, publication, clicks, the worker and the audit, each with a client certificate."""
    settings = secured.mutual_tls()
    for name, value in settings.items():
        monkeypatch.setenv(f"MINDSTREAM_KAFKA__{name.upper()}", value)
    address = settings["bootstrap_servers"]
    with deployed(address, milvus_lite.uri, tmp_path, partitions=2) as deployment:
        assert deployment.settings.kafka.security_protocol == "SSL"
        deployment.produce(random_clicks(300))
        deployment.consume_all()
        assert_store_is_the_fold(deployment)


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_user_with_the_right_password_is_known(secured: Secured, mechanism: str) -> None:
    """Both mechanisms log in: what is missing then are the rights."""
    settings = KafkaSettings(**secured.scram(sasl_mechanism=mechanism, clicks_topic="absent"))
    with pytest.raises(Misconfigured, match="has no topic absent"):
        check_topics(settings)


def refused_kafka(secured: Secured) -> dict[str, tuple[dict[str, Any], str]]:
    """What is wrong: the settings, and what the message says of it."""
    foreign, foreign_key = map(str, secured.unknown.client("admin"))
    locked, locked_key = map(str, secured.known.client("locked", password=PASSWORD))
    mutual = secured.mutual_tls()
    other_name = mutual["bootstrap_servers"].replace("127.0.0.1", "localhost")
    return {
        "password": (secured.scram(sasl_password=WRONG), "MINDSTREAM_KAFKA__SASL_"),
        "user": (secured.scram(sasl_username="absent"), "MINDSTREAM_KAFKA__SASL_"),
        "mechanism": (secured.scram(sasl_mechanism="PLAIN"), "MINDSTREAM_KAFKA__SASL_"),
        "authority": (
            secured.scram(ssl_cafile=str(secured.unknown.file)),
            "MINDSTREAM_KAFKA__SSL_CAFILE",
        ),
        "no authority": (mutual | {"ssl_cafile": None}, "MINDSTREAM_KAFKA__SSL_CAFILE"),
        "host": (mutual | {"bootstrap_servers": other_name}, "localhost.* is for another host"),
        "client's authority": (
            mutual | {"ssl_certfile": foreign, "ssl_keyfile": foreign_key},
            "MINDSTREAM_KAFKA__SSL_CERTFILE",
        ),
        "no certificate": (
            mutual | {"ssl_certfile": None, "ssl_keyfile": None},
            "MINDSTREAM_KAFKA__SSL_CERTFILE",
        ),
        "key of another": (mutual | {"ssl_keyfile": foreign_key}, "MINDSTREAM_KAFKA__SSL_KEYFILE"),
        "key's password": (
            mutual | {"ssl_certfile": locked, "ssl_keyfile": locked_key, "ssl_password": WRONG},
            "MINDSTREAM_KAFKA__SSL_KEYFILE",
        ),
        "absent file": (
            mutual | {"ssl_cafile": "/absent/ca.pem"},
            r"MINDSTREAM_KAFKA__SSL_CAFILE.*/absent/ca\.pem",
        ),
    }


@pytest.mark.parametrize(
    "wrong",
    [
        "password",
        "user",
        "mechanism",
        "authority",
        "no authority",
        "host",
        "client's authority",
        "no certificate",
        "key of another",
        "key's password",
        "absent file",
    ],
)
def test_what_kafka_will_never_accept_is_told_at_once(secured: Secured, wrong: str) -> None:
    """Restarting would not help, so it is Misconfigured; the setting is named, no secret shown."""
    settings, says = refused_kafka(secured)[wrong]
    began = time.monotonic()
    with pytest.raises(Misconfigured, match=says) as caught:
        check_topics(KafkaSettings(**settings))
    assert time.monotonic() - began < PROMPT_S
    assert PASSWORD not in str(caught.value)
    assert WRONG not in str(caught.value)


def test_a_key_with_a_password_can_be_used(secured: Secured) -> None:
    """An encrypted key is decrypted with MINDSTREAM_KAFKA__SSL_PASSWORD."""
    certificate, key = map(str, secured.known.client("locked-admin", password=PASSWORD))
    changes = {"ssl_certfile": certificate, "ssl_keyfile": key, "ssl_password": PASSWORD}
    with pytest.raises(Misconfigured, match="has no topic"):
        check_topics(KafkaSettings(**secured.mutual_tls(**changes)))


# Milvus ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    folder = tmp_path_factory.mktemp("authorities")
    return Authority(folder / "known"), Authority(folder / "unknown")


@pytest.fixture(scope="module")
def tls_server(authorities: tuple[Authority, Authority]) -> Iterator[LocalMilvusServer]:
    known, _ = authorities
    security = MilvusSecurity(*known.server("127.0.0.1"), known.file)
    with LocalMilvusServer(security=security) as server:
        yield server


@pytest.fixture(scope="module")
def mutual_tls_server(authorities: tuple[Authority, Authority]) -> Iterator[LocalMilvusServer]:
    known, _ = authorities
    files = known.server("127.0.0.1")
    security = MilvusSecurity(*files, known.file, client=known.client("probe"))
    with LocalMilvusServer(security=security) as server:
        yield server


def test_interests_are_written_and_read_with_tls_and_token(
    tls_server: LocalMilvusServer, authorities: tuple[Authority, Authority]
) -> None:
    """A real server that demands both."""
    index = InterestIndex(
        MilvusSettings(
            uri=tls_server.uri,
            token=MilvusSecurity.ROOT,
            tls_cafile=str(authorities[0].file),
            timeout_s=60,
        )
    )
    index.create_release("secured", 2)
    vectors = np.eye(2, dtype=np.float32)
    rows = InterestRows(
        user_ids=["u", "u"],
        slots=np.arange(2),
        weights=np.array([0.75, 0.25], np.float32),
        exemplars=["a", "b"],
        updated_at=np.array([1, 1]),
        vectors=vectors,
    )
    index.write_interests("secured", rows, [], budget_s=60)
    found = index.interests("secured", ["u"], 2, "Strong")["u"]
    assert [interest.exemplar for interest in found] == ["a", "b"]
    index.close()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"token": f"root:{WRONG}"}, "MINDSTREAM_MILVUS__TOKEN"),
        ({"token": WRONG}, "MINDSTREAM_MILVUS__TOKEN"),
        ({"token": None}, "MINDSTREAM_MILVUS__TOKEN"),
        ({"tls_cafile": "unknown"}, "MINDSTREAM_MILVUS__TLS_CAFILE"),
        ({"tls_cafile": None}, "MINDSTREAM_MILVUS__TLS_CAFILE"),
        ({"tls_cafile": "/absent/ca.pem"}, r"MINDSTREAM_MILVUS__TLS_CAFILE.*/absent/ca\.pem"),
        ({"tls_server_name": "milvus.example"}, "is for another host"),
    ],
    ids=["password", "key", "no token", "authority", "no authority", "absent file", "host"],
)
def test_what_milvus_will_never_accept_is_told_at_once(
    tls_server: LocalMilvusServer,
    authorities: tuple[Authority, Authority],
    changes: dict[str, Any],
    says: str,
) -> None:
    """Misconfigured, with the setting's name and without the token."""
    known, unknown = authorities
    if changes.get("tls_cafile") == "unknown":
        changes = {"tls_cafile": str(unknown.file)}
    right = {"uri": tls_server.uri, "token": MilvusSecurity.ROOT, "tls_cafile": str(known.file)}
    began = time.monotonic()
    with pytest.raises(Misconfigured, match=says) as caught:
        milvus_client(MilvusSettings(**(right | changes), timeout_s=60))
    assert time.monotonic() - began < PROMPT_S
    assert WRONG not in str(caught.value)
    assert MilvusSecurity.ROOT not in str(caught.value)


def test_milvus_may_demand_a_client_certificate(
    mutual_tls_server: LocalMilvusServer, authorities: tuple[Authority, Authority]
) -> None:
    """With one of its authority a client is served; with none, or another's, refused at once."""
    known, unknown = authorities
    right: dict[str, Any] = {
        "uri": mutual_tls_server.uri,
        "token": MilvusSecurity.ROOT,
        "tls_cafile": str(known.file),
    }

    def shown(files: tuple[Path, Path]) -> MilvusSettings:
        certificate, key = map(str, files)
        return MilvusSettings(**right, tls_certfile=certificate, tls_keyfile=key)

    client = milvus_client(shown(known.client("worker")))
    assert client.list_collections() == []
    client.close()
    for refused in (shown(unknown.client("worker")), MilvusSettings(**right)):
        with pytest.raises(Misconfigured, match="MINDSTREAM_MILVUS__TLS_CERTFILE"):
            milvus_client(refused)


# Secrets -----------------------------------------------------------------------------------


def test_secrets_appear_in_no_output(
    secured: Secured, tls_server: LocalMilvusServer, authorities: tuple[Authority, Authority]
) -> None:
    """A refused worker and a refused look-up, at level debug, on a console and as JSON."""
    settings = Settings(
        kafka=KafkaSettings(**secured.scram(sasl_password=WRONG)),
        milvus=MilvusSettings(
            uri=tls_server.uri, token=f"root:{WRONG}", tls_cafile=str(authorities[0].file)
        ),
    )
    for form, arguments in (
        ("console", ["worker"]),
        ("json", ["worker"]),
        ("console", ["lookup", "u"]),
    ):
        logged = settings.model_copy(
            update={"log": settings.log.model_copy(update={"level": "debug", "format": form})}
        )
        done = subprocess.run(
            [sys.executable, "-m", "mindstream", *arguments],
            env={**child_environment(logged), "MINDSTREAM_WORKER__HTTP_PORT": "0"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        said = done.stdout + done.stderr
        assert done.returncode == EXIT_MISCONFIGURED, said
        assert "refused" in said
        assert WRONG not in said


# Listening ---------------------------------------------------------------------------------


def test_nothing_listens_beyond_loopback(
    secured: Secured, milvus_lite: LocalMilvusLite, tmp_path: Path
) -> None:
    """The worker's HTTP port and its embedded store, the broker's four listeners, Milvus Lite."""
    store = str(tmp_path / "store.db")
    with deployed(secured.broker.bootstrap_servers, milvus_lite.uri, tmp_path) as deployment:
        embedded = deployment.settings.milvus.model_copy(update={"uri": store})
        index = InterestIndex(embedded)
        index.create_release(deployment.release.name, deployment.release.manifest.width)
        index.close()
        close_embedded(store)
        log = tmp_path / "log"
        worker = start_worker(deployment.settings.model_copy(update={"milvus": embedded}), log)
        try:
            wait_until(lambda: "worker.serving" in log.read_text(), "the worker to serve")
            found = {
                name: listening(pid)
                for name, pid in {
                    "worker": worker.pid,
                    "broker": secured.broker.pid,
                    "Milvus Lite": milvus_lite.pid,
                }.items()
            }
        finally:
            worker.terminate()
            worker.wait(30)
    assert found == {name: {"127.0.0.1"} for name in found}
