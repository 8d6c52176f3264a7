"""Alerts and the dashboard ask for metrics that a driver exports, and for nothing else."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from datadream.runtime import metrics
from tests.cluster.documents import CLUSTER, documents

DASHBOARD = json.loads((CLUSTER / "monitoring" / "dashboard.json").read_text())
PANELS = DASHBOARD["panels"]
RULES = documents("monitoring/alerts.yaml")[0]["groups"][0]["rules"]
EXPRESSIONS = [rule["expr"] for rule in RULES] + [target["expr"] for panel in PANELS for target in panel["targets"]]


@pytest.fixture
def exported(monkeypatch) -> dict[str, tuple[str, ...]]:
    """The tags of what Ray is told to export, by name; Ray prefixes its own name."""
    made = {}
    monkeypatch.setattr(
        metrics, "Gauge", lambda name, description, tag_keys: made.update({f"ray_{name}": tag_keys}), raising=True
    )
    metrics.RayMetrics()
    return made


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_metrics_and_labels_exist(exported, expression):
    asked = re.findall(r"ray_\w+", expression)
    assert asked
    for name in asked:
        assert name in exported
    for name, selector in re.findall(r"(ray_\w+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)=", selector)) <= set(exported[name])
    grouped = {label for labels in re.findall(r"by \(([^)]*)\)", expression) for label in labels.split(", ")}
    assert all(grouped <= set(exported[name]) for name in asked)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_brackets_are_closed(expression):
    without = re.sub(r'"[^"]*"', "", expression)
    for opening, closing in ("()", "{}", "[]"):
        assert without.count(opening) == without.count(closing)


def test_alerts_say_what_to_do():
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_the_dashboard_can_be_read():
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in PANELS)
    places = {(x, y) for panel in PANELS for x, y in _cells(panel["gridPos"])}
    assert len(places) == sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in PANELS)
    assert max(x for x, _ in places) < 24


def test_grafana_finds_the_dashboard():
    (provider,) = yaml.safe_load((CLUSTER / "monitoring" / "grafana.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"].startswith("/")


def _cells(place: dict[str, int]) -> list[tuple[int, int]]:
    return [(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])]
