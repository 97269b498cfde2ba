"""Alerts and dashboard: every expression is one, about metrics and labels that the agent has, and the alerts fire when they should."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml

from tests.helm.helm import CHART, PROMTOOL, ROOT
from tools.metrics import families

ALERTS = [
    rule for group in yaml.safe_load((CHART / "files/alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
DASHBOARD = json.loads((CHART / "files/dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [
    *((rule["alert"], rule["expr"]) for rule in ALERTS),
    *((panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]),
]
#: Labels that Prometheus gives to what it scrapes.
SCRAPED = {"instance", "job"}


SAMPLES = [sample for family in families() for sample in family.samples]


def parts(expression: str) -> Iterator[Any]:
    """The nodes of an expression, with Grafana's variables filled in."""
    text = expression.replace("$__rate_interval", "5m").replace("$instance", ".*")
    found: list[Any] = []
    promql_parser.walk(promql_parser.parse(text), pre_visit=found.append)
    yield from found


@pytest.mark.parametrize(("name", "expression"), EXPRESSIONS, ids=[name for name, _ in EXPRESSIONS])
def test_expression_is_about_what_the_agent_exposes(name: str, expression: str) -> None:
    selectors = [part for part in parts(expression) if isinstance(part, promql_parser.VectorSelector)]
    assert selectors
    known: set[str] = set(SCRAPED)
    for selector in selectors:
        wanted = {matcher.name: matcher.value for matcher in selector.matchers.matchers if matcher.name not in SCRAPED}
        matching = [
            sample for sample in SAMPLES if sample.name == selector.name and wanted.items() <= sample.labels.items()
        ]
        assert matching, f"{name}: no metric {selector}"
        known |= matching[0].labels.keys()
    for part in parts(expression):
        if isinstance(part, promql_parser.AggregateExpr) and part.modifier:
            assert known.issuperset(part.modifier.labels), f"{name}: {part}"


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_legend_names_labels_of_the_result(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
            assert re.search(rf"by \([^)]*\b{label}\b", target["expr"]) or label == "instance"


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    shown = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
    ours = {
        re.sub(r"_(bucket|sum|count|created)$", "", sample.name)
        for sample in SAMPLES
        if sample.name.startswith("ipvs_proxy_")
    }
    assert {name for name in ours if name not in shown} == set()


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for position in (panel["gridPos"] for panel in panels)
        for x in range(position["x"], position["x"] + position["w"])
        for y in range(position["y"], position["y"] + position["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_alerts_fire_when_they_should() -> None:
    assert PROMTOOL.exists(), f"{PROMTOOL} is missing, run: make .cache/promtool"
    for arguments in (
        ("check", "rules", "helm/ipvs-proxy/files/alerts.yaml"),
        ("test", "rules", "tests/helm/alerts_test.yaml"),
    ):
        done = subprocess.run([PROMTOOL, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test_and_says_what_it_is() -> None:
    tests = yaml.safe_load((ROOT / "tests/helm/alerts_test.yaml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in ALERTS}
    for rule in ALERTS:
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["labels"]["severity"] in {"warning", "critical"}
