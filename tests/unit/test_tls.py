"""TLS: files are checked before anything connects, and refusals are explained."""

import ssl
from pathlib import Path

import pytest

from encoder.errors import Misconfigured
from encoder.settings import KafkaSettings, MilvusSettings, ReleaseSettings
from encoder.tls import TlsFiles
from tests.certificates import Authority


def files(cafile: object, certfile: object = None, keyfile: object = None) -> TlsFiles:
    paths = [None if path is None else str(path) for path in (cafile, certfile, keyfile)]
    return TlsFiles("MINDSTREAM_X__", *paths)


def test_a_server_must_prove_its_name(tmp_path: Path) -> None:
    """Certificate and host name are always checked, and nothing older than TLS 1.2 is spoken."""
    for context in (files(None).context(), files(Authority(tmp_path / "a").file).context()):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    """An absent file, one that is no PEM, and a key of another certificate: setting and path."""
    one, other = Authority(tmp_path / "one"), Authority(tmp_path / "other")
    certificate, _ = one.client("c")
    _, key = other.client("c")
    empty = tmp_path / "empty.pem"
    empty.touch()
    for wrong in (tmp_path / "absent.pem", empty):
        with pytest.raises(Misconfigured, match=f"MINDSTREAM_X__CAFILE.*{wrong}"):
            files(wrong).context()
        with pytest.raises(Misconfigured, match=f"MINDSTREAM_X__CERTFILE.*{wrong}"):
            files(one.file, wrong, key).context()
    with pytest.raises(Misconfigured, match=f"MINDSTREAM_X__KEYFILE.*{key}"):
        files(one.file, certificate, key).context()


def test_a_locked_key_without_its_password_is_refused(tmp_path: Path) -> None:
    """The message says that a password is wanted."""
    authority = Authority(tmp_path / "a")
    certificate, key = authority.client("c", password="correct-horse")  # noqa: S106
    with pytest.raises(Misconfigured, match="password of the key"):
        files(authority.file, certificate, key).context()


def test_a_connection_that_was_cut_is_no_verdict() -> None:
    """A server that goes down in the middle of a handshake may be back in a moment."""
    assert files(None).explain(ssl.SSLEOFError(8, "EOF occurred"), "h:1") is None


@pytest.mark.parametrize(
    "settings",
    [
        {"uri": "http://h:1", "tls_cafile": "ca.pem"},
        {"uri": "https://h:1", "tls_certfile": "c.pem", "tls_keyfile": "c.key"},
        {"uri": "https://h:1", "tls_certfile": "c.pem", "tls_cafile": "ca.pem"},
        {"uri": "https://root:hunter2@h:1"},
    ],
    ids=["plain uri", "no authority", "no key", "password in the uri"],
)
def test_milvus_settings_must_fit_together(settings: dict[str, str]) -> None:
    """Half a TLS configuration is refused before anything connects, as is a password on show."""
    with pytest.raises(ValueError, match=r"tls_|TOKEN"):
        MilvusSettings(**settings)  # type: ignore[arg-type]


def test_a_release_url_has_no_password() -> None:
    """URLs appear in messages and topics."""
    with pytest.raises(ValueError, match="no password here"):
        ReleaseSettings(url="sftp://u:hunter2@h/releases")
    assert ReleaseSettings(url="s3://bucket/releases").url == "s3://bucket/releases"


def test_passwords_are_masked_wherever_settings_are_shown() -> None:
    """In repr, str, and a dump."""
    secret = "hunter2"  # noqa: S105
    shown = [
        KafkaSettings(sasl_password=secret, ssl_password=secret),  # type: ignore[arg-type]
        MilvusSettings(token=secret),  # type: ignore[arg-type]
    ]
    for settings in shown:
        for text in (repr(settings), str(settings), str(settings.model_dump())):
            assert secret not in text
            assert "***" in text
