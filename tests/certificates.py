"""Certificates for tests, made on the spot by authorities that nobody else trusts."""

from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization


class Authority:
    """One certificate authority, and files of what it signed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._authority = trustme.CA()
        self.file = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self.file)

    def server(self, host: str) -> tuple[Path, Path]:
        """Files of a server's certificate and key."""
        return self._write(host, self._authority.issue_cert(host))

    def client(self, name: str, password: str = "") -> tuple[Path, Path]:
        """Files of a client's certificate and key; with a password the key is encrypted."""
        issued = self._authority.issue_cert(
            f"{name}@mindstream.example",
            common_name=name,
            organization_name="mindstream",
            organization_unit_name="tests",
        )
        return self._write(name, issued, password)

    @staticmethod
    def principal(name: str) -> str:
        """How Kafka calls the client of that name."""
        return f"User:CN={name},OU=tests,O=mindstream"

    def _write(self, name: str, issued: trustme.LeafCert, password: str = "") -> tuple[Path, Path]:
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        # PKCS #8, which is what Kafka reads.
        key.write_bytes(
            serialization.load_pem_private_key(
                issued.private_key_pem.bytes(), password=None
            ).private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(password.encode())
                if password
                else serialization.NoEncryption(),
            )
        )
        return certificate, key
