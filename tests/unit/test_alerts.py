"""The alerts: rules that Prometheus reads, on metrics and labels that there are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, cast

import promql_parser
import pytest
import yaml
from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from consumers.metrics import WorkerMetrics
from encoder.errors import Misconfigured
from lookup import Lookup
from lookup.http import application
from mindstream.drift import Drift
from mindstream.live_recall import LiveRecall
from mindstream.monitor_metrics import MonitorMetrics

FOLDER = Path(__file__).parents[2] / "deploy/prometheus"
OPERATING = FOLDER.parents[1] / "docs/operating.md"
SAMPLES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
GIVEN = {"le", "job", "instance"}  # labels that every histogram and every scraped metric has


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Rule(Closed):
    """As Prometheus's documentation of alerting rules has it."""

    alert: str
    expr: str
    for_: Annotated[str | None, Field(alias="for")] = None  # a word of Python
    labels: dict[str, str]
    annotations: dict[str, str]


class Group(Closed):
    name: str
    rules: list[Rule]


class Rules(Closed):
    groups: list[Group]


def rules() -> list[Rule]:
    found = Rules.model_validate(yaml.safe_load((FOLDER / "alerts.yaml").read_text()))
    return [rule for group in found.groups for rule in group.rules]


class _NoStore:
    @property
    def items_are_in_memory(self) -> bool:
        raise Misconfigured("no release is in use")


def families() -> Iterator[Metric]:
    """Of every process that serves metrics."""
    yield from WorkerMetrics().registry.collect()
    yield from shown().registry.collect()
    service = application(cast("Lookup", _NoStore()))
    (metrics,) = (route for route in service.routes if getattr(route, "path", "") == "/metrics")
    answer = cast("Any", metrics).endpoint(Request({"type": "http"}))
    yield from text_string_to_metric_families(bytes(answer.body).decode())


def shown() -> MonitorMetrics:
    """Metrics of a monitor that has measured all that there is."""
    metrics = MonitorMetrics()
    found = LiveRecall(9, {20: 0.2, 50: 0.3}, {20: 0.1, 50: 0.2}, 9, 0.1)
    drift = Drift(
        release="r2",
        before="r1",
        at=datetime(2026, 1, 1, tzinfo=UTC),
        warm=True,
        users=9,
        changed=0.25,
        shared_items=9,
        item_cosine=0.98,
        interest_cosine=0.3,
        coverage=0.5,
    )
    metrics.measured("r2", found, 0.3, 0.5, drift)
    return metrics


def samples(of: Iterable[Metric]) -> set[str]:
    return {family.name + end for family in of for end in SAMPLES[family.type]}


def selectors(expression: str) -> Iterator[promql_parser.VectorSelector]:
    found: list[promql_parser.VectorSelector] = []

    def visit(node: object) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    yield from found


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.alert)
def test_an_alert_is_on_metrics_that_there_are(rule: Rule) -> None:
    """Its expression parses, and each metric in it is one that some process serves."""
    there = samples(families())
    named = {selector.name for selector in selectors(rule.expr)}
    assert named
    assert named <= there
    if rule.for_ is not None:
        assert promql_parser.parse_duration(rule.for_).total_seconds() > 0
    assert rule.labels["severity"] in {"warning", "critical"}
    assert rule.annotations.keys() == {"summary"}


def test_alerts_on_drift_select_by_labels_that_there_are() -> None:
    """A label that is renamed would make an alert silent."""
    text = generate_latest(shown().registry).decode()
    there = {
        sample.name: sample.labels
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    checked = 0
    for rule in rules():
        for selector in selectors(rule.expr):
            for matcher in selector.matchers.matchers:
                if selector.name in there:
                    assert matcher.name in {*there[selector.name], *GIVEN}, rule.alert
                    checked += 1
            ignored = re.findall(r"ignoring \((\w+)\)", rule.expr)
            assert all(f"{label}=" in rule.expr for label in ignored)
    assert checked >= 6


def test_a_metric_that_is_renamed_is_found_out() -> None:
    """The names are compared in full: the other tests can fail."""
    there = samples(families())
    assert "mindstream_recall_ratio" in there
    assert "mindstream_clicks_total" in there
    assert "mindstream_lookup_seconds_count" in there
    assert not {"mindstream_recall", "mindstream_clicks", "mindstream_ready_total"} & there


def test_what_is_not_known_is_absent_and_not_another_number() -> None:
    """No clicks, no recall; no release, nothing: neither 0 nor what was before."""
    metrics = shown()
    none = LiveRecall(0, {20: float("nan")}, {20: float("nan")}, 0, float("nan"))
    metrics.measured("r3", none, 0.3, 0.5, None)
    text = generate_latest(metrics.registry).decode()
    values = [line for line in text.splitlines() if line.startswith("mindstream_")]
    assert not any(
        re.match("mindstream_(recall_ratio|unknown|switch|popularity)", v) for v in values
    )
    assert 'mindstream_measured_release_info{release="r3"} 1.0' in values
    assert "nan" not in text.lower()
    metrics.nothing_in_use()
    text = generate_latest(metrics.registry).decode()
    assert not re.search("^mindstream_(coverage|measured_release)", text, re.MULTILINE)


def test_every_alert_says_what_to_do() -> None:
    """Each has a line of its own in the operator's manual, and the manual has no others."""
    listed = set(re.findall(r"^\| `(Mindstream\w+)` \|", OPERATING.read_text(), re.MULTILINE))
    assert listed == {rule.alert for rule in rules()}
    assert len(rules()) == len(listed)


def test_kustomize_makes_a_config_map_of_them() -> None:
    """It lists the file, under a name that stays."""
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    (made,) = kustomization["configMapGenerator"]
    assert made["files"] == ["alerts.yaml"]
    assert kustomization["generatorOptions"] == {"disableNameSuffixHash": True}
    assert {path.name for path in FOLDER.iterdir()} == {"alerts.yaml", "kustomization.yaml"}
