"""`mindstream serve` as a process, and requests to it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deploy.loopback import free_ports
from encoder.settings import Settings
from mindstream.environment import child_environment
from tests.deployment import wait_until


@contextmanager
def lookup_service(settings: Settings, **environment: str) -> Iterator[str]:
    """The address of a running service, which ends well afterwards."""
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-m", "mindstream", "serve"],
        env={
            **child_environment(settings),
            "MINDSTREAM_LOOKUP__HTTP_PORT": str(port),
            **environment,
        },
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: process.poll() is not None or get(url, "/livez")[0] == 200, "a server")
        assert process.poll() is None
        yield url
    finally:
        process.terminate()
        assert process.wait(20) == 0


def get(url: str, path: str) -> tuple[int, Any]:
    """Status and answer, which is read if it is JSON; status 0 where nobody answers."""
    try:
        with urllib.request.urlopen(url + path, timeout=20) as answer:  # noqa: S310
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        status, text = exc.code, exc.read().decode()
    except OSError:
        return 0, ""
    return status, json.loads(text) if text.startswith("{") else text
