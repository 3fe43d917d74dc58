"""What a local broker needs to take clients that prove who they are: certificates, users, ACLs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

MECHANISMS: Final = ("SCRAM-SHA-256", "SCRAM-SHA-512")
SCRAM: Final = "SCRAM"
"""Listener for users with a password, over TLS."""
MUTUAL_TLS: Final = "MUTUAL"
"""Listener for users with a certificate."""


@dataclass(frozen=True)
class BrokerSecurity:
    """Two further listeners, one for SCRAM over TLS and one for mutual TLS, and an authoriser.

    Clients of the plain listener may do everything, as before. Other users may do what an ACL
    grants them, and nothing without one.

    Attributes:
        server: PEM with the broker's private key (PKCS #8), certificate and its chain, in this
            order.
        ca: PEM with the authority that clients' certificates must come from.
        users: name and password of those who may use SCRAM. Kafka's storage tool takes passwords
            on its command line only: no place for those of a real deployment.
        super_users: principals that need no ACL, such as `User:CN=admin`.
    """

    server: bytes = field(repr=False)
    ca: bytes
    users: Mapping[str, str] = field(default_factory=dict, repr=False)
    super_users: Sequence[str] = ()

    def write_files(self, folder: Path) -> None:
        """Put the PEM files where `properties` says that they are."""
        for name, content in (("server.pem", self.server), ("ca.pem", self.ca)):
            (folder / name).touch(mode=0o600)
            (folder / name).write_bytes(content)

    def properties(self, folder: Path) -> dict[str, object]:
        """For ``server.properties``; `folder` is where the PEM files are, as the server sees it."""
        scram = f"listener.name.{SCRAM.lower()}"
        module = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        return {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": folder / "server.pem",
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": folder / "ca.pem",
            f"listener.name.{MUTUAL_TLS.lower()}.ssl.client.auth": "required",
            f"{scram}.sasl.enabled.mechanisms": ",".join(MECHANISMS),
            **{f"{scram}.{one.lower()}.sasl.jaas.config": module for one in MECHANISMS},
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            # ANONYMOUS is whoever comes through the plain listener, the broker itself included.
            "super.users": ";".join(["User:ANONYMOUS", *self.super_users]),
        }

    def format_options(self) -> list[str]:
        """For the storage tool, which creates the users."""
        return [
            f"--add-scram={mechanism}=[name={name},password={password}]"
            for name, password in self.users.items()
            for mechanism in MECHANISMS
        ]
