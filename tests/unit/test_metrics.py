"""The bulk histogram counts as prometheus_client's own does; the probes tell the truth."""

import urllib.error
import urllib.request

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from consumers.health import Health, HealthServer
from consumers.metrics import BulkHistogram, WorkerMetrics
from encoder.errors import Misconfigured

BOUNDS = (0.5, 1.0, 2.0)
VALUES = [0.0, 0.5, 0.50001, 1.0, 1.5, 2.0, 9.0]


def samples(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels.get("le", "")): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_a_bulk_histogram_equals_one_observation_at_a_time() -> None:
    """Bounds are inclusive, the last bucket is everything."""
    bulk, single = CollectorRegistry(), CollectorRegistry()
    one = BulkHistogram("h", "text", BOUNDS, bulk)
    one.observe(np.array(VALUES[:3]))
    one.observe(np.array(VALUES[3:]))
    other = Histogram("h", "text", registry=single, buckets=BOUNDS)
    for value in VALUES:
        other.observe(value)
    found, expected = samples(bulk), samples(single)
    assert {(n, float(b or 0)): v for (n, b), v in found.items()} == {
        (n, float(b or 0)): v for (n, b), v in expected.items()
    }


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


def test_probes_follow_the_loop() -> None:
    """Ready once nothing is waited for; live while the loop comes round."""
    metrics = WorkerMetrics()
    health = Health(stalled_after_s=1000)
    server = HealthServer("127.0.0.1", 0, health, metrics.registry)
    try:
        assert get(server.port, "/readyz") == (503, "starting\n")
        health.waiting_for("restoring windows: 7")
        assert get(server.port, "/readyz") == (503, "restoring windows: 7\n")
        health.waiting_for("")
        assert get(server.port, "/readyz") == (200, "ready\n")
        assert get(server.port, "/livez")[0] == 200
        assert get(server.port, "/nothing")[0] == 404
        assert "mindstream_freshness_seconds_bucket" in get(server.port, "/metrics")[1]
        with pytest.raises(Misconfigured, match="HTTP_PORT"):
            HealthServer("127.0.0.1", server.port, health, metrics.registry)
    finally:
        server.close()


def test_a_stalled_loop_is_not_live() -> None:
    """Zero patience makes any loop stalled."""
    assert not Health(stalled_after_s=0).live()[0]
