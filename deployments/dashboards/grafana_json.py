"""A dashboard in the form that Grafana reads (dashboard schema 39, Grafana 10.4 and later).

The schema: https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import quote

from deployments.dashboards.model import Dashboard, Kind, Panel, Query, Row, Unit, Variable

SCHEMA_VERSION: Final = 39
TAG: Final = "pointsman"
TRACE_ID: Final = "trace_id"
"""The label of an exemplar that names its trace."""
BUCKETS: Final = "{{le}}"
"""The legend of a query for the buckets of a histogram."""
WIDTH: Final = 24
"""Columns of Grafana's grid."""
PROMETHEUS: Final = {"type": "prometheus", "uid": "${datasource}"}

Json = dict[str, Any]


def to_json(dashboard: Dashboard) -> Json:
    """The dashboard as Grafana's API takes it, without what Grafana itself adds (`id`, `version`)."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [_siblings()],
        "templating": {"list": [*_sources(), *(_variable(one) for one in dashboard.variables)]},
        "annotations": {"list": [_alerts()]},
        "panels": list(_panels(dashboard.rows)),
    }


def to_text(dashboard: Dashboard) -> str:
    """The same as the text of a file."""
    return json.dumps(to_json(dashboard), indent=2) + "\n"


def _siblings() -> Json:
    return {
        "type": "dashboards",
        "title": "Pointsman",
        "tags": [TAG],
        "asDropdown": True,
        "keepTime": True,
        "includeVars": True,
    }


def _sources() -> Iterable[Json]:
    """Which Prometheus is asked, and which store of traces links lead to: Grafana has names of its own for both."""
    for name, label, kind in (("datasource", "Prometheus", "prometheus"), ("traces", "Traces", "tempo")):
        yield {"name": name, "label": label, "type": "datasource", "query": kind, "hide": 0, "refresh": 1}


def _variable(variable: Variable) -> Json:
    query = f"label_values({variable.metric}, {variable.label})"
    made: Json = {
        "name": variable.name,
        "label": variable.name.capitalize(),
        "type": "query",
        "datasource": PROMETHEUS,
        "definition": query,
        "query": {"query": query, "refId": "variable"},
        "refresh": 2,
        "sort": 3,
        "multi": variable.many,
        "includeAll": variable.many,
    }
    # `.*` and not a list of all: models that come later are shown, too.
    return made | ({"allValue": ".*", "current": {"text": "All", "value": "$__all"}} if variable.many else {})


def _alerts() -> Json:
    """Alerts that fire, drawn over all panels."""
    return {
        "name": "Alerts",
        "datasource": PROMETHEUS,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{alertname=~"Pointsman.*",alertstate="firing"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{model}}",
    }


def _panels(rows: Iterable[Row]) -> Iterable[Json]:
    number, top = 1, 0
    for row in rows:
        place = {"x": 0, "y": top, "w": WIDTH, "h": 1}
        yield {"id": number, "type": "row", "title": row.title, "collapsed": False, "gridPos": place, "panels": []}
        number, top = number + 1, top + 1
        width = WIDTH // len(row.panels)
        for position, panel in enumerate(row.panels):
            place = {"x": position * width, "y": top, "w": width, "h": row.height}
            yield {"id": number, "gridPos": place, **_panel(panel)}
            number += 1
        top += row.height


def _panel(panel: Panel) -> Json:
    made: Json = {"type": panel.kind.value, "title": panel.title, "description": panel.description}
    if panel.kind is Kind.TEXT:
        return made | {"options": {"mode": "markdown", "content": panel.text}}
    made |= {
        "datasource": PROMETHEUS,
        "targets": [_target(panel, query, chr(ord("A") + index)) for index, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": [_trace_link()] if _sights(panel) else []},
        "options": _options(panel),
    }
    if panel.matrix is not None:
        matrix = {"rowField": panel.matrix.rows, "columnField": panel.matrix.columns, "valueField": "Value"}
        made["transformations"] = [{"id": "groupingToMatrix", "options": {**matrix, "emptyValue": "zero"}}]
    return made


def _target(panel: Panel, query: Query, reference: str) -> Json:
    instant = panel.kind in {Kind.NUMBER, Kind.TABLE}
    shape = "table" if panel.kind is Kind.TABLE else "time_series"
    if query.legend == BUCKETS:
        # Takes each bucket from the next: right for the buckets of a histogram, wrong for rows of any other kind.
        shape = "heatmap"
    return {
        "refId": reference,
        "datasource": PROMETHEUS,
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "instant": instant,
        "range": not instant,
        "exemplar": query.exemplar,
        "format": shape,
    }


def _defaults(panel: Panel) -> Json:
    steps: list[Json] = [{"color": "green", "value": None}]
    if panel.bad_above is not None:
        steps.append({"color": "red", "value": panel.bad_above})
    defaults: Json = {"unit": panel.unit.value, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.kind is Kind.LINES:
        custom: Json = {"fillOpacity": 30 if panel.stacked else 5, "showPoints": "never"}
        custom["stacking"] = {"mode": "normal" if panel.stacked else "none"}
        custom["thresholdsStyle"] = {"mode": "off" if panel.bad_above is None else "dashed"}
        defaults["custom"] = custom
    if panel.kind is Kind.TABLE:
        defaults["color"] = {"mode": "continuous-BlYlRd"}
        defaults["custom"] = {"cellOptions": {"type": "color-background"}}
    return defaults


def _options(panel: Panel) -> Json:
    if panel.kind is Kind.NUMBER:
        return {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "none"}
    if panel.kind is Kind.HEAT_MAP:
        # Each series is a row of the map; `calculate` would make a histogram of their values instead.
        return {
            "calculate": False,
            "color": {"mode": "scheme", "scheme": "Inferno", "steps": 64},
            "cellGap": 0,
            "rowsFrame": {"layout": "auto", "value": panel.title},
            "cellValues": {"unit": panel.unit.value},
            "yAxis": {"unit": Unit.COUNT.value},
            "tooltip": {"mode": "single"},
        }
    if panel.kind is Kind.TABLE:
        return {"showHeader": True, "cellHeight": "sm"}
    return {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _sights(panel: Panel) -> bool:
    return any(query.exemplar for query in panel.queries)


def trace_url() -> str:
    """Where an exemplar leads: its trace in Grafana's Explore, in the chosen store of traces."""
    query = '{"refId":"A","queryType":"traceql","query":"${__value.raw}","datasource":{"uid":"${traces}"}}'
    panes = f'{{"trace":{{"datasource":"${{traces}}","queries":[{query}],"range":{{"from":"now-24h","to":"now"}}}}}}'
    # Grafana puts values in place of `${...}` before it follows the link, so these stay as they are.
    return "/explore?schemaVersion=1&panes=" + re.sub(r"%24%7B([\w.]+)%7D", r"${\1}", quote(panes))


def _trace_link() -> Json:
    link = {"title": "Trace", "url": trace_url(), "targetBlank": True}
    return {"matcher": {"id": "byName", "options": TRACE_ID}, "properties": [{"id": "links", "value": [link]}]}
