"""TLS to Kafka and to Milvus: files are read before anything connects, refusals are explained."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from typing import Final

from encoder.errors import Misconfigured

_WRONG_NAME: Final = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_ALERT_WAIT_S: Final = 1.0


@dataclass(frozen=True)
class TlsFiles:
    """What a client trusts and what it shows, as settings name it.

    Attributes:
        prefix: of the settings' variables, for messages.
        cafile: PEM of the authorities that a server's certificate may come from; the system's own
            if None.
        certfile: PEM of the client's certificate and its chain.
        keyfile: PEM of its private key; within `certfile` if None.
        password: of the key.
    """

    prefix: str
    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    password: str | None = None

    def context(self) -> ssl.SSLContext:
        """A context that checks the server's certificate and name.

        Raises:
            Misconfigured: a file is missing or is not what it must be; names the setting.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.cafile is None:
            context.load_default_certs()
        else:
            try:
                context.load_verify_locations(self.cafile)
            except OSError as exc:  # ssl.SSLError is one
                raise Misconfigured(
                    f"{self.prefix}CAFILE: cannot read certificates from {self.cafile}: {exc};"
                    " expected a PEM file"
                ) from exc
        if self.certfile is not None:
            try:
                # Without a password OpenSSL would ask for one on the terminal.
                context.load_cert_chain(self.certfile, self.keyfile, lambda: self.password or "")
            except (OSError, ValueError) as exc:
                raise Misconfigured(
                    f"{self.prefix}CERTFILE, {self.prefix}KEYFILE: cannot use {self.certfile} with"
                    f" {self.keyfile or 'the key in it'}: {exc}; expected PEM files of a"
                    " certificate and its key, and the password of the key if it has one"
                ) from exc
        return context

    def explain(self, error: ssl.SSLError, server: str) -> str | None:
        """Why this will not pass by itself, and what to mend; None where it might."""
        if isinstance(error, ssl.SSLCertVerificationError):
            if error.verify_code in _WRONG_NAME:
                return (
                    f"the certificate of {server} is for another host ({error.verify_message});"
                    " address the server by a name that its certificate has"
                )
            return (
                f"the certificate of {server} cannot be trusted ({error.verify_message});"
                f" {self.prefix}CAFILE must hold the authority that signed it, and the certificate"
                " must be in date"
            )
        if is_cut(error):
            return None
        reason = error.reason or ""
        if "ALERT" in reason:
            return (
                f"{server} refused the TLS connection ({reason}); {self.prefix}CERTFILE and"
                " …KEYFILE must be a certificate that it accepts"
            )
        if reason == "WRONG_VERSION_NUMBER":
            return f"{server} does not speak TLS on this port"
        return None


def is_cut(error: ssl.SSLError) -> bool:
    """Whether the connection ended in the middle: no verdict, the server may be going down."""
    return isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)


def refusal(files: TlsFiles, host: str, port: int, name: str, timeout_s: float) -> str | None:
    """Why a TLS handshake with a server fails for good; None if it does not, or might pass later.

    Args:
        files: what to trust and to show.
        host: of the server.
        port: of the server.
        name: that its certificate must have.
        timeout_s: of each step.

    Raises:
        Misconfigured: a file cannot be used.
    """
    context = files.context()
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, port), timeout=timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=name) as connection,
        ):
            # A server that does not like our certificate says so after the handshake.
            connection.settimeout(_ALERT_WAIT_S)
            connection.recv(1)
    except ssl.SSLError as exc:
        return files.explain(exc, f"{host}:{port}")
    except OSError:
        return None
    return None
