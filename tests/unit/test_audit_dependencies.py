"""The audit of dependencies fails on a finding, and says when it could not look."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from deploy.loopback import free_ports

ROOT = Path(__file__).parents[2]
FLAW = {
    "id": "TEST-2026-1",
    "summary": "not a real one",
    "modified": "2026-01-01T00:00:00Z",
    "affected": [
        {
            "package": {"name": "numpy", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999.1"}]}],
        }
    ],
}


class Service(BaseHTTPRequestHandler):
    """Answers as api.osv.dev does; it knows of one flaw, in numpy, if `server.flawed`."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        flawed = getattr(self.server, "flawed", False) and asked["package"]["name"] == "numpy"
        body = json.dumps({"vulns": [FLAW]} if flawed else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  its name there
        pass


@pytest.fixture
def service() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def audit(port: int) -> subprocess.CompletedProcess[str]:
    uv = shutil.which("uv") or str(ROOT / ".tools/bin/uv")
    where = ["--uv", uv, "--osv-url", f"http://127.0.0.1:{port}/v1/query"]
    return subprocess.run(
        [sys.executable, "-m", "deploy.audit_dependencies", *where],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_a_vulnerability_fails_the_audit(service: HTTPServer) -> None:
    """The package, its version, the id and the version that mends it are told."""
    service.flawed = True  # type: ignore[attr-defined]
    done = audit(service.server_port)
    assert done.returncode == 1, done.stderr
    assert "numpy" in done.stdout
    assert "TEST-2026-1 (fixed in 999.1)" in done.stdout


def test_without_a_vulnerability_the_audit_passes(service: HTTPServer) -> None:
    """It says how many packages were looked at, the extras and the development tools included."""
    done = audit(service.server_port)
    assert done.returncode == 0, done.stderr
    number = int(done.stdout.split(" vulnerabilities in ")[1].split()[0])
    assert number > 80
    assert "WARNING" not in done.stderr


def test_an_audit_without_a_service_is_not_taken_for_a_clean_one() -> None:
    """A machine without a network may run the tests, and is told that nothing was audited."""
    (port,) = free_ports(1)
    done = audit(port)
    assert done.returncode == 0
    assert "WARNING: dependencies were NOT audited" in done.stderr
