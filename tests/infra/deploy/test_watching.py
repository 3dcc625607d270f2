"""Alerts and dashboard speak only of what gateway and engine really expose, in valid PromQL."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from infra.settings.model import Settings
from serving.engines.embedded.metrics import Metrics as EngineMetrics
from serving.gateway.server import Gateway

DEPLOY = Path(__file__).parents[3] / "infra/deploy"
PROMETHEUS_S_OWN = {"up"}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    return json.loads((DEPLOY / "grafana/dashboard.json").read_text())


def expressions() -> list[str]:
    shown = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return [rule["expr"] for rule in rules()] + [
        expression.replace("$__rate_interval", "1m") for expression in shown
    ]


def selectors(node: Any) -> list[tuple[str, set[str]]]:
    """Every metric in an expression with the labels it is asked by."""
    found: list[tuple[str, set[str]]] = []
    if isinstance(node, promql_parser.VectorSelector):
        found.append((node.name, {matcher.name for matcher in node.matchers.matchers}))
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        below = getattr(node, name, None)
        if below is not None and not isinstance(below, str):
            found += selectors(below)
    for below in getattr(node, "args", None) or ():
        found += selectors(below)
    return found


@pytest.fixture
async def exposed(settings: Settings) -> dict[str, set[str]]:
    """What a real gateway and a real engine name, with the labels: sample names as scraped."""
    gateway = Gateway(settings)
    metrics = gateway.metrics
    metrics.answered("task", "champion", "confidence:0.1", 0.1)
    metrics.saved("task", 1, 0.1)
    metrics.errors.labels("500")
    metrics.lost.labels("full")
    metrics.dropped.labels("audit")
    metrics.background.labels("audit", "ok")
    metrics.kills.labels("task")
    engine = EngineMetrics(lambda: 0, lambda: 0)
    engine.requests.labels("200")
    engine._rows.labels("decode")
    page = metrics.page().decode() + engine.text().decode()
    await gateway.teacher.close()
    gateway.spool.close()
    return {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


async def test_every_metric_and_label_is_one_that_we_expose(exposed: dict[str, set[str]]) -> None:
    added_by_prometheus = {"job", "instance"}
    asked = [
        found
        for expression in expressions()
        for found in selectors(promql_parser.parse(expression))
    ]
    assert len(asked) >= len(expressions())
    for name, labels in asked:
        if name not in PROMETHEUS_S_OWN:
            assert name in exposed, name
            assert labels <= exposed[name] | added_by_prometheus, name


def test_what_is_marked_alert_has_an_alert_and_leads_to_the_runbook() -> None:
    runbook = (DEPLOY / "RUNBOOK.md").read_text()
    anchors = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", runbook, re.MULTILINE)
    }
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))
    for rule in rules():
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert (page, anchor in anchors) == ("RUNBOOK.md", True), rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")
    marked = re.findall(
        r'"(nightschool_\w+)",\s*"[^"]*ALERT on any',
        (DEPLOY.parents[1] / "serving/gateway/metrics.py").read_text(),
    )
    assert marked
    for name in marked:
        assert any(f"{name}_total" in rule["expr"] for rule in rules()), name


def test_the_dashboard_is_laid_out_without_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + right, place["y"] + down)
            for right in range(place["w"])
            for down in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["datasource"]["uid"] == "prometheus"
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(ids) == len(set(ids))


def test_each_alert_rings_when_it_should_and_not_before(tmp_path: Path) -> None:
    played = Path(__file__).with_name("alerts.yml").read_text()
    assert set(re.findall(r"alertname: (\w+)", played)) == {rule["alert"] for rule in rules()}
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here (it comes with the package prometheus)")
    file = tmp_path / "alerts.yml"
    file.write_text(played.replace("RULES", str(DEPLOY / "prometheus/rules.yml")))
    done = subprocess.run(
        [promtool, "test", "rules", str(file)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
