"""Single requests: the slow ones, and the way to their traces."""

from __future__ import annotations

from typing import Final

from deployments.dashboards.model import MODELS, RATE, Dashboard, Kind, Panel, Query, Row, Unit
from deployments.dashboards.overview import MODEL

HOW_TO: Final = """Each point on a latency is one request (an exemplar). **Point at it and follow _Trace_**: it opens in the store
of traces that is chosen above. Without one, take the `trace_id` of the point to the machine of the cluster:

```console
$ pointsman trace TRACE_ID
$ pointsman records --json
```

Points are there if Prometheus runs with `--enable-feature=exemplar-storage`. An answer names its trace, too: in the header
`x-pointsman-trace-id`.
"""


def _quantile(share: float, metric: str, by: str = "model") -> str:
    return f"histogram_quantile({share}, sum by ({by}, le) (rate({metric}_bucket{{{MODELS}}}[{RATE}])))"


REQUESTS: Final = Dashboard(
    uid="pointsman-requests",
    title="Pointsman: requests",
    description="How long requests take, with single ones that link to their traces.",
    variables=(MODEL,),
    rows=(
        Row(
            "From a point to a trace",
            (Panel("How to find a request", "What the points on this page are.", kind=Kind.TEXT, text=HOW_TO),),
            height=7,
        ),
        Row(
            "Latency",
            tuple(
                Panel(
                    f"{name} (p50, p99)",
                    f"{what} Points are single requests: they link to their traces.",
                    tuple(
                        Query(_quantile(share, metric), f"{{{{model}}}} p{share * 100:g}", exemplar=True)
                        for share in (0.5, 0.99)
                    ),
                    unit=Unit.SECONDS,
                )
                for name, metric, what in (
                    ("Whole request", "pointsman_request_seconds", "Seconds from arrival to the last byte."),
                    (
                        "First token",
                        "pointsman_time_to_first_token_seconds",
                        "Seconds from arrival to the first token of a stream.",
                    ),
                )
            ),
            height=10,
        ),
        Row(
            "Spread",
            (
                Panel(
                    "Whole requests by time",
                    "How many requests a second took how long.",
                    (
                        Query(
                            f"sum by (le) (rate(pointsman_request_seconds_bucket{{{MODELS}}}[{RATE}]))",
                            "{{le}}",
                        ),
                    ),
                    Kind.HEAT_MAP,
                    Unit.REQUESTS,
                ),
                Panel(
                    "First tokens by time",
                    "How many streams a second began after how long.",
                    (
                        Query(
                            f"sum by (le) (rate(pointsman_time_to_first_token_seconds_bucket{{{MODELS}}}[{RATE}]))",
                            "{{le}}",
                        ),
                    ),
                    Kind.HEAT_MAP,
                    Unit.REQUESTS,
                ),
            ),
        ),
        Row(
            "Size",
            (
                Panel(
                    "Prompt (p50, p95)",
                    "Prompt tokens of a request.",
                    tuple(
                        Query(_quantile(share, "pointsman_request_prompt_tokens"), f"{{{{model}}}} p{share * 100:g}")
                        for share in (0.5, 0.95)
                    ),
                ),
                Panel(
                    "Completion (p50, p95)",
                    "Completion tokens of a request.",
                    tuple(
                        Query(
                            _quantile(share, "pointsman_request_completion_tokens"), f"{{{{model}}}} p{share * 100:g}"
                        )
                        for share in (0.5, 0.95)
                    ),
                ),
                Panel(
                    "Cached prompt tokens",
                    "Share of the prompt tokens of answered requests that were in the prefix cache.",
                    (
                        Query(
                            f"sum by (model) (rate(pointsman_cached_tokens_total{{{MODELS}}}[{RATE}])) / "
                            f"(sum by (model) (rate(pointsman_prompt_tokens_total{{{MODELS}}}[{RATE}])) > 0)",
                            "{{model}}",
                        ),
                    ),
                    unit=Unit.RATIO,
                    most=1,
                ),
            ),
        ),
        Row(
            "Under way",
            (
                Panel(
                    "In flight",
                    "Requests in the ingress, by endpoint.",
                    (Query("sum by (endpoint) (pointsman_requests_in_flight)", "{{endpoint}}"),),
                    stacked=True,
                ),
                Panel(
                    "Tried again",
                    "Requests a second that another replica took over before the first byte.",
                    (Query(f"sum by (model) (rate(pointsman_retries_total{{{MODELS}}}[{RATE}]))", "{{model}}"),),
                    unit=Unit.REQUESTS,
                ),
                Panel(
                    "Clients that left",
                    "Requests a second whose client went away before its answer was complete.",
                    (Query(f"sum by (endpoint) (rate(pointsman_client_disconnects_total[{RATE}]))", "{{endpoint}}"),),
                    unit=Unit.REQUESTS,
                ),
            ),
        ),
    ),
)
