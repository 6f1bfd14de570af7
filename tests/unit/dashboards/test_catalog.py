"""The dashboards as they are shipped: current, whole, and asking for what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cluster.telemetry.metric_table import MetricType, all_metrics
from deployments.cli.app import app
from deployments.dashboards.catalog import DASHBOARDS, file_name
from deployments.dashboards.grafana_json import WIDTH, to_json, to_text
from deployments.dashboards.model import Dashboard, Kind

INFRA = Path(__file__).parents[3] / "infra"
SHIPPED = INFRA / "grafana" / "dashboards"
RULES = [
    rule
    for path in sorted((INFRA / "prometheus" / "rules").glob("*.yaml"))
    for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
LABELS = {metric.name: {*metric.labels, "le"} for metric in all_metrics()}
HISTOGRAMS = {metric.name for metric in all_metrics() if metric.type is MetricType.HISTOGRAM}
SERIES = re.compile(r"\b((?:\w+:)?pointsman[\w:]*)\b(\{[^}]*\})?")
each = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda one: one.uid)


def unknown(expr: str) -> list[str]:
    """What an expression asks for and nobody tells."""
    found = []
    for name, selector in SERIES.findall(re.sub(r'"pointsman"', '""', expr)):
        metric = re.sub(r"_(bucket|sum|count)$", "", name)
        metric = metric if metric in HISTOGRAMS else name
        if metric not in LABELS and name not in RECORDED:
            found.append(name)
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        found += [f"{name}{{{label}}}" for label in labels - LABELS.get(metric, {"model", "pool"})]
    return found


def test_the_files_are_current() -> None:
    assert {path.name for path in SHIPPED.iterdir()} == {file_name(one) for one in DASHBOARDS}
    for dashboard in DASHBOARDS:
        same = (SHIPPED / file_name(dashboard)).read_text(encoding="utf-8") == to_text(dashboard)
        assert same, "make them anew: pointsman dashboards show --out infra/grafana/dashboards"


@each
def test_every_query_asks_for_metrics_and_labels_that_there_are(dashboard: Dashboard) -> None:
    for panel in dashboard.panels():
        for query in panel.queries:
            assert unknown(query.expr) == [], panel.title
            labels = set(re.findall(r"{{(\w+)}}", query.legend))
            told = re.search(r"by \(([^)]*)\)", query.expr)
            if told is not None:
                assert labels <= set(re.split(r",\s*", told[1])), panel.title
    for variable in dashboard.variables:
        assert variable.label in LABELS[variable.metric]


def test_every_rule_asks_for_metrics_and_labels_that_there_are() -> None:
    assert {
        rule.get("record", rule.get("alert")): unknown(rule["expr"]) for rule in RULES if unknown(rule["expr"])
    } == {}


def test_every_metric_is_on_a_dashboard_or_in_a_rule() -> None:
    asked = " ".join(query.expr for one in DASHBOARDS for panel in one.panels() for query in panel.queries)
    asked += " ".join(rule["expr"] for rule in RULES)
    assert [name for name in LABELS if not re.search(rf"\b{name}(_bucket|_sum|_count)?\b", asked)] == []


@each
def test_panels_fill_the_grid_and_do_not_overlap(dashboard: Dashboard) -> None:
    taken: set[tuple[int, int]] = set()
    panels = to_json(dashboard)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= WIDTH and not cells & taken
        taken |= cells


@each
def test_every_panel_says_what_it_shows(dashboard: Dashboard) -> None:
    titles = [panel.title for panel in dashboard.panels()]
    assert len(set(titles)) == len(titles)
    for panel in dashboard.panels():
        assert panel.description.endswith((".", ":")), panel.title
        assert bool(panel.queries) != (panel.kind is Kind.TEXT), panel.title


def test_a_latency_links_to_the_trace_of_a_request() -> None:
    linked = 0
    for dashboard in DASHBOARDS:
        for panel in to_json(dashboard)["panels"]:
            if not any(target["exemplar"] for target in panel.get("targets", ())):
                continue
            (override,) = panel["fieldConfig"]["overrides"]
            assert override["matcher"] == {"id": "byName", "options": "trace_id"}
            (link,) = override["properties"][0]["value"]
            assert "${__value.raw}" in link["url"] and "${traces}" in link["url"]
            linked += 1
    assert linked >= 3
    sources = yaml.safe_load((INFRA / "grafana/provisioning/datasources/pointsman.yaml").read_text())["datasources"]
    (lead,) = sources[0]["jsonData"]["exemplarTraceIdDestinations"]
    assert lead == {"name": "trace_id", "datasourceUid": sources[1]["uid"]}


def test_experts_are_drawn_as_heat_maps() -> None:
    (experts,) = (to_json(one) for one in DASHBOARDS if one.uid == "pointsman-experts")
    (heat,) = (panel for panel in experts["panels"] if panel["type"] == "heatmap")
    # Grafana's format `heatmap` would take each expert from the next, as if they were buckets.
    assert [target["format"] for target in heat["targets"]] == ["time_series"]
    (matrix,) = (panel for panel in experts["panels"] if panel["type"] == "table")
    (step,) = matrix["transformations"]
    assert (step["id"], step["options"]["rowField"], step["options"]["columnField"]) == (
        "groupingToMatrix",
        "layer",
        "expert",
    )


def test_the_command_lists_and_writes_them(tmp_path: Path) -> None:
    listed = CliRunner().invoke(app, ["dashboards", "show"])
    assert listed.exit_code == 0 and all(one.uid in listed.stdout for one in DASHBOARDS)
    assert CliRunner().invoke(app, ["dashboards", "show", "--out", str(tmp_path / "new")]).exit_code == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {file_name(one) for one in DASHBOARDS}
    printed = CliRunner().invoke(app, ["dashboards", "show", "--json"])
    assert [one["uid"] for one in json.loads(printed.stdout)] == [one.uid for one in DASHBOARDS]
