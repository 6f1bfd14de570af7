"""Where requests go, why, and how sure the answers are."""

from __future__ import annotations

from typing import Final

from deployments.dashboards.model import MODELS, RATE, Dashboard, Panel, Query, Row, Unit
from deployments.dashboards.overview import MODEL

ROUTING: Final = Dashboard(
    uid="pointsman-routing",
    title="Pointsman: routing and confidence",
    description="Which rules send requests where, how sure models are of their answers, and what is asked twice.",
    variables=(MODEL,),
    rows=(
        Row(
            "Decisions",
            (
                Panel(
                    "Decisions by model",
                    "Which model requests are sent to; one that fails over counts for each model.",
                    (
                        Query(
                            f"sum by (model) (rate(pointsman_route_decisions_total{{{MODELS}}}[{RATE}]))", "{{model}}"
                        ),
                    ),
                    unit=Unit.REQUESTS,
                    stacked=True,
                ),
                Panel(
                    "Decisions by rule",
                    "The rule that decided. `..._fallback`: the model meant could not take the request.",
                    (Query(f"sum by (rule) (rate(pointsman_route_decisions_total{{{MODELS}}}[{RATE}]))", "{{rule}}"),),
                    unit=Unit.REQUESTS,
                    stacked=True,
                ),
                Panel(
                    "Thrash",
                    "Of the requests that say the same as an earlier one, the share that went to another model. "
                    "Their prefix is not cached there.",
                    (Query("pointsman:route_changed:ratio_rate15m", "changed"),),
                    unit=Unit.RATIO,
                    most=1,
                    bad_above=0.2,
                ),
            ),
        ),
        Row(
            "Confidence",
            (
                Panel(
                    "Mean confidence by model",
                    "How sure models are of judged answers, over 15 minutes; dashed in the alert: a fifth below the day's mean.",
                    (
                        Query(f"model:pointsman_attempt_confidence:mean_rate15m{{{MODELS}}}", "{{model}}"),
                        Query(f"model:pointsman_attempt_confidence:mean_rate1d{{{MODELS}}}", "{{model}}, the last day"),
                    ),
                    unit=Unit.RATIO,
                    most=1,
                ),
                Panel(
                    "Least sure tenth by model",
                    "A tenth of the judged answers had at most this confidence.",
                    (
                        Query(
                            "histogram_quantile(0.1, sum by (model, le) "
                            f"(rate(pointsman_attempt_confidence_ratio_bucket{{{MODELS}}}[{RATE}])))",
                            "{{model}}",
                        ),
                    ),
                    unit=Unit.RATIO,
                    most=1,
                ),
                Panel(
                    "What became of attempts",
                    "`accepted` was good enough, `requeried` asked again, `escalated` asked of the next model, "
                    "`best` sent for want of a better one.",
                    (
                        Query(
                            f"sum by (outcome) (rate(pointsman_attempts_judged_total{{{MODELS}}}[{RATE}]))",
                            "{{outcome}}",
                        ),
                    ),
                    unit=Unit.PER_SECOND,
                    stacked=True,
                ),
                Panel(
                    "Escalated by model",
                    "Share of the judged attempts after which the next model was asked.",
                    (Query(f"model:pointsman_attempts_escalated:ratio_rate15m{{{MODELS}}}", "{{model}}"),),
                    unit=Unit.RATIO,
                    most=1,
                    bad_above=0.3,
                ),
            ),
        ),
        Row(
            "Admission",
            (
                Panel(
                    "Admission by outcome",
                    "Requests that came to a model: let in, made to wait, or turned away.",
                    (Query(f"sum by (outcome) (rate(pointsman_admissions_total{{{MODELS}}}[{RATE}]))", "{{outcome}}"),),
                    unit=Unit.REQUESTS,
                    stacked=True,
                ),
                Panel(
                    "Waiting by model",
                    "Requests that wait for their model in the ingress.",
                    (Query(f"sum by (model) (pointsman_admission_waiting{{{MODELS}}})", "{{model}}"),),
                    stacked=True,
                ),
                Panel(
                    "Rejected by model",
                    "Share of the requests that came to a model.",
                    (Query(f"model:pointsman_admissions_rejected:ratio_rate5m{{{MODELS}}}", "{{model}}"),),
                    unit=Unit.RATIO,
                    most=1,
                    bad_above=0.05,
                ),
                Panel(
                    "Late first tokens by role",
                    "Streams whose first token came later than the target of their role.",
                    (
                        Query(
                            f"sum by (role) (rate(pointsman_latency_target_misses_total{{{MODELS}}}[{RATE}]))",
                            "{{role}}",
                        ),
                    ),
                    unit=Unit.REQUESTS,
                ),
            ),
        ),
    ),
)
