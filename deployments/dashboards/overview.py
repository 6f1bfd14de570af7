"""How the cluster is doing, at one look."""

from __future__ import annotations

from typing import Final

from deployments.dashboards.model import MODELS, RATE, Dashboard, Kind, Panel, Query, Row, Unit, Variable

MODEL: Final = Variable("model", "pointsman_replicas", "model")
"""On every dashboard: the models that are looked at."""
BUDGET: Final = 0.001
"""Share of requests that may fail by the cluster's fault, as in the alerts."""

OVERVIEW: Final = Dashboard(
    uid="pointsman-overview",
    title="Pointsman: overview",
    description="Whether requests are answered, how fast, by what, and what is wrong.",
    variables=(MODEL,),
    rows=(
        Row(
            "Now",
            (
                Panel(
                    "Requests",
                    "Requests answered a second.",
                    (Query(f"sum(rate(pointsman_requests_total{{{MODELS}}}[{RATE}]))"),),
                    Kind.NUMBER,
                    Unit.REQUESTS,
                ),
                Panel(
                    "Failed",
                    "Share of requests that failed by the cluster's fault in five minutes; the budget is 0.1 %.",
                    (Query("pointsman:request_errors:ratio_rate5m"),),
                    Kind.NUMBER,
                    Unit.RATIO,
                    bad_above=BUDGET,
                ),
                Panel(
                    "Budget burnt",
                    "Share of the error budget of 30 days that the last three days used.",
                    (Query(f"pointsman:request_errors:ratio_rate3d * 3 / 30 / {BUDGET}"),),
                    Kind.NUMBER,
                    Unit.RATIO,
                    bad_above=0.1,
                ),
                Panel(
                    "First token (p95)",
                    "Within this time 95 % of streams began, of the slowest model.",
                    (Query(f"max(model:pointsman_time_to_first_token_seconds:p95_rate5m{{{MODELS}}})"),),
                    Kind.NUMBER,
                    Unit.SECONDS,
                ),
                Panel(
                    "Models without a replica",
                    "Parked ones do not count.",
                    (
                        Query(
                            '(count(max by (model) (pointsman_replicas{state="ready"}) == 0 unless '
                            'max by (model) (pointsman_replicas{state="parked"}) == 1) or vector(0))'
                        ),
                    ),
                    Kind.NUMBER,
                    bad_above=1,
                ),
                Panel(
                    "Alerts",
                    "Alerts that fire.",
                    (Query('count(ALERTS{alertname=~"Pointsman.*",alertstate="firing"}) or vector(0)'),),
                    Kind.NUMBER,
                    bad_above=1,
                ),
            ),
            height=4,
        ),
        Row(
            "Traffic",
            (
                Panel(
                    "Requests by model",
                    "Which models answer how many requests a second.",
                    (Query(f"model:pointsman_requests:rate5m{{{MODELS}}}", "{{model}}"),),
                    unit=Unit.REQUESTS,
                    stacked=True,
                ),
                Panel(
                    "Answers by status",
                    "HTTP status of what a model answered; 499: the client did not wait, 502: a stream broke.",
                    (Query(f"sum by (status) (rate(pointsman_requests_total{{{MODELS}}}[{RATE}]))", "{{status}}"),),
                    unit=Unit.REQUESTS,
                    stacked=True,
                ),
                Panel(
                    "Refusals by code",
                    "Requests that no model answered, by error code.",
                    (
                        Query(
                            f"sum by (status, code) (rate(pointsman_refused_total[{RATE}]))",
                            "{{status}} {{code}}",
                        ),
                    ),
                    unit=Unit.REQUESTS,
                    stacked=True,
                ),
            ),
        ),
        Row(
            "Speed",
            (
                Panel(
                    "First token (p95) by model",
                    "Within this time 95 % of streams began. Points are single requests: they link to their traces.",
                    (
                        Query(
                            "histogram_quantile(0.95, sum by (model, le) "
                            f"(rate(pointsman_time_to_first_token_seconds_bucket{{{MODELS}}}[{RATE}])))",
                            "{{model}}",
                            exemplar=True,
                        ),
                    ),
                    unit=Unit.SECONDS,
                ),
                Panel(
                    "Between tokens (p95) by model",
                    "95 % of the tokens of streams came within this time of the one before.",
                    (Query(f"model:pointsman_inter_token_latency_seconds:p95_rate5m{{{MODELS}}}", "{{model}}"),),
                    unit=Unit.SECONDS,
                ),
                Panel(
                    "Tokens generated by model",
                    "Completion tokens a second.",
                    (
                        Query(
                            f"sum by (model) (rate(pointsman_completion_tokens_total{{{MODELS}}}[{RATE}]))",
                            "{{model}}",
                        ),
                    ),
                    unit=Unit.PER_SECOND,
                    stacked=True,
                ),
            ),
        ),
        Row(
            "Cost",
            (
                Panel(
                    "Engine-seconds by model",
                    "Seconds that requests held an engine, for each second: how many were in work at once.",
                    (Query(f"sum by (model) (rate(pointsman_engine_seconds_total{{{MODELS}}}[{RATE}]))", "{{model}}"),),
                    stacked=True,
                ),
                Panel(
                    "Spent on external models",
                    "Money an hour, in the currency of the config.",
                    (
                        Query(
                            f"sum by (model) (rate(pointsman_cost_total{{{MODELS}}}[{RATE}])) * 3600",
                            "{{model}}",
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    "Idle replicas",
                    "Share of their time in which replicas had nothing to do.",
                    (
                        Query(
                            f'sum by (model) (rate(pointsman_replica_seconds_total{{state="idle",{MODELS}}}[{RATE}])) / '
                            f"sum by (model) (rate(pointsman_replica_seconds_total{{{MODELS}}}[{RATE}]))",
                            "{{model}}",
                        ),
                    ),
                    unit=Unit.RATIO,
                    most=1,
                ),
            ),
        ),
    ),
)
