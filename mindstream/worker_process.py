"""A worker as a child process, for the demonstration: its own interpreter, as in production."""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from deploy.guarded_process import GuardedProcess, tail
from encoder.errors import Unavailable
from encoder.settings import Settings
from mindstream.environment import child_environment

_POLL_S: Final = 0.1
_STOP_GRACE_S: Final = 5.0
_READY: Final = 200


class WorkerProcess:
    """Runs `mindstream worker` with given settings; it ends with us, however we end."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self._settings = settings
        self._log = log
        self._process: GuardedProcess | None = None

    def start(
        self, *, ready_within_s: float, notify: Callable[[str], None] = lambda doing: None
    ) -> None:
        """Start, and wait until the worker serves its partitions.

        Raises:
            Unavailable: it ended, or was not ready in time; tells the end of its log.
        """
        self._process = GuardedProcess(
            [sys.executable, "-m", "mindstream", "worker"],
            log=self._log,
            stop_budget_s=self._settings.worker.stop_budget_s + _STOP_GRACE_S,
            environment=child_environment(self._settings),
        )
        deadline = time.monotonic() + ready_within_s
        while True:
            status, text = self._get("/readyz")
            if status == _READY:
                return
            notify(text)
            self.check()
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"the worker was not ready within {ready_within_s:g} s ({text});"
                    f" {self._log} ends:\n{self.log_tail()}"
                )
            time.sleep(_POLL_S)

    def log_tail(self) -> str:
        """The end of the worker's log."""
        return tail(self._log)

    def check(self) -> None:
        """See that the worker is still there.

        Raises:
            Unavailable: it ended; tells the end of its log.
        """
        if self._process is None or not self._process.running:
            raise Unavailable(f"the worker ended; {self._log} ends:\n{self.log_tail()}")

    def metrics(self) -> dict[str, float]:
        """Its metrics by sample name, empty while it does not answer.

        A sample with labels is summed over them, and there by itself as `name/label value`.
        """
        status, text = self._get("/metrics")
        values: dict[str, float] = {}
        if status == _READY:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    values[sample.name] = values.get(sample.name, 0.0) + sample.value
                    if sample.labels:
                        values["/".join((sample.name, *sample.labels.values()))] = sample.value
        return values

    def stop(self) -> None:
        """Ask it to stop, and wait; killed if it takes too long."""
        if self._process is not None:
            self._process.stop()

    def _get(self, path: str) -> tuple[int, str]:
        worker = self._settings.worker
        url = f"http://{worker.http_host}:{worker.http_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as exc:
            return exc.code, exc.read().decode().strip()
        except OSError:
            return 0, "starting the worker"
