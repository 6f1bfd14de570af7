"""The reference of the metrics as Markdown, made from their table so that it cannot go stale."""

from __future__ import annotations

from typing import Final

from cluster.telemetry.metric_table import Metric, all_metrics

_HEADER: Final = """# Metrics

`GET /metrics` of the ingress has these, in Prometheus's text format. Where keys are asked for, so it does here: any key
of the cluster opens it (`pointsman keys add prometheus`), sent as `Authorization: Bearer ...`. What an operator
applies is in `infra/prometheus/` (scrape config, recording rules, alerts) and `infra/grafana/` (dashboards).

- Names follow Prometheus's rules: base units, `_total` on counters. A counter begins anew with its process.
- A histogram is three series: `NAME_bucket` by `le`, `NAME_sum` and `NAME_count`. Its buckets are below.
- Labels come from bounded sets: models from the config, anything else up to a limit, beyond which it is `other`.
- A metric without an event so far has no series, and its line `# TYPE` alone. So `rate()` of it is empty, not 0.
- Ingress processes of one machine share its port, so a scrape reaches one of them, by chance, and rates are wrong: run one to a
  machine (on Kubernetes, to a pod), and scrape each.

"""
_COLUMNS: Final = ("metric", "type", "unit", "labels", "meaning")


def render_metrics() -> str:
    """The whole page, Markdown."""
    metrics = all_metrics()
    rows = [_row(*_COLUMNS), _row(*("---" for _ in _COLUMNS)), *(_line(metric) for metric in metrics)]
    bounds = [f"- `{metric.name}`: {_bounds(metric)}" for metric in metrics if metric.buckets]
    return "\n".join([_HEADER + rows[0], *rows[1:], "", "## Buckets", "", *bounds, ""])


def _line(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
    return _row(f"`{metric.name}`", metric.type.value, metric.unit, labels, metric.help)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _bounds(metric: Metric) -> str:
    return ", ".join(f"{bound:g}" for bound in metric.buckets) + f" {metric.unit}"
