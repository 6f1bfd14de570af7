"""Experts of one sparse model: which are hot, how even the work is, and how its pools stand."""

from __future__ import annotations

from typing import Final

from deployments.dashboards.model import RATE, Dashboard, Kind, Matrix, Panel, Query, Row, Unit, Variable

MODEL: Final = 'model="$model"'

EXPERTS: Final = Dashboard(
    uid="pointsman-experts",
    title="Pointsman: experts",
    description="Heat of the experts of one sparse model, and the replicas of its pools.",
    variables=(
        Variable("model", "pointsman_expert_imbalance_ratio", "model", many=False),
        Variable("layer", "pointsman_expert_imbalance_ratio", "layer", many=False),
    ),
    rows=(
        Row(
            "Heat",
            (
                Panel(
                    "Experts of layer $layer",
                    "Tokens a second that went to each expert of the layer, over time. Models with many experts are told of "
                    "by layer alone (experts.metric_series).",
                    (
                        Query(
                            f'sum by (expert) (rate(pointsman_expert_tokens_total{{{MODEL},layer="$layer"}}[{RATE}]))',
                            "{{expert}}",
                        ),
                    ),
                    Kind.HEAT_MAP,
                    Unit.PER_SECOND,
                ),
                Panel(
                    "All layers",
                    "Share of a layer's tokens that each expert had lately; a row is a layer, a column an expert.",
                    (
                        Query(
                            f"sum by (layer, expert) (rate(pointsman_expert_tokens_total{{{MODEL}}}[{RATE}])) / "
                            "on (layer) group_left () "
                            f"(sum by (layer) (rate(pointsman_expert_tokens_total{{{MODEL}}}[{RATE}])) > 0)"
                        ),
                    ),
                    Kind.TABLE,
                    Unit.RATIO,
                    matrix=Matrix("layer", "expert"),
                ),
            ),
            height=12,
        ),
        Row(
            "Balance",
            (
                Panel(
                    "Imbalance by layer",
                    "Tokens of the busiest expert by those of the mean one; 1 is even.",
                    (Query(f"pointsman_expert_imbalance_ratio{{{MODEL}}}", "layer {{layer}}"),),
                    bad_above=4,
                ),
                Panel(
                    "Entropy by layer",
                    "How evenly tokens spread over the experts, 1 for evenly.",
                    (Query(f"pointsman_expert_entropy_ratio{{{MODEL}}}", "layer {{layer}}"),),
                    unit=Unit.RATIO,
                    most=1,
                ),
                Panel("Hot experts", "Experts that are hot.", (Query(f"pointsman_experts_hot{{{MODEL}}}", "hot"),)),
                Panel(
                    "Experts of a request",
                    "Share of all experts that half of the requests, and 95 % of them, use at most.",
                    tuple(
                        Query(
                            f"histogram_quantile({share}, sum by (le) "
                            f"(rate(pointsman_request_experts_ratio_bucket{{{MODEL}}}[{RATE}])))",
                            f"{share:.0%}",
                        )
                        for share in (0.5, 0.95)
                    ),
                    unit=Unit.RATIO,
                    most=1,
                ),
                Panel(
                    "Time by width",
                    "Seconds that 95 % of requests hold an engine at most, by the share of all experts that they use.",
                    (
                        Query(
                            "histogram_quantile(0.95, sum by (width, le) "
                            f"(rate(pointsman_experts_request_seconds_bucket{{{MODEL}}}[{RATE}])))",
                            "{{width}}",
                        ),
                    ),
                    unit=Unit.SECONDS,
                ),
            ),
        ),
        Row(
            "Pools",
            (
                Panel(
                    "Replicas",
                    "Replicas of each pool that answer, and that it is to have.",
                    (
                        Query(f"max by (pool) (pointsman_expert_pool_replicas{{{MODEL}}})", "pool {{pool}}"),
                        Query(
                            f"max by (pool) (pointsman_expert_pool_replicas_wanted{{{MODEL}}})", "pool {{pool}}, wanted"
                        ),
                    ),
                ),
                Panel(
                    "Load",
                    "Pairs of token and expert that come, by what the answering replicas can compute.",
                    (Query(f"max by (pool) (pointsman_expert_pool_load_ratio{{{MODEL}}})", "pool {{pool}}"),),
                    unit=Unit.RATIO,
                    bad_above=1,
                ),
                Panel(
                    "Pairs",
                    "Pairs of token and expert a second.",
                    (Query(f"max by (pool) (pointsman_expert_pool_pairs_per_second{{{MODEL}}})", "pool {{pool}}"),),
                    unit=Unit.PER_SECOND,
                    stacked=True,
                ),
                Panel(
                    "Memory",
                    "Weights of all replicas, and what their processes take beside these.",
                    (
                        Query(f"sum(max by (pool) (pointsman_expert_pool_weight_bytes{{{MODEL}}}))", "weights"),
                        Query(f"sum(max by (pool) (pointsman_expert_pool_overhead_bytes{{{MODEL}}}))", "processes"),
                    ),
                    unit=Unit.BYTES,
                    stacked=True,
                ),
            ),
        ),
        Row(
            "What pools cost requests",
            (
                Panel(
                    "Changes by cause",
                    "Changes of the number of replicas in ten minutes.",
                    (
                        Query(
                            "sum by (cause) (max by (model, cause) "
                            f"(increase(pointsman_expert_pool_changes_total{{{MODEL}}}[10m])))",
                            "{{cause}}",
                        ),
                    ),
                ),
                Panel(
                    "Stood in for, and sent again",
                    "Tokens times layers a second in which other experts stood in, and that were sent a second time.",
                    (
                        Query(f"sum(rate(pointsman_expert_rows_degraded_total{{{MODEL}}}[{RATE}]))", "stood in for"),
                        Query(f"sum(rate(pointsman_expert_rows_resent_total{{{MODEL}}}[{RATE}]))", "sent again"),
                    ),
                    unit=Unit.PER_SECOND,
                ),
                Panel(
                    "Waiting for pools",
                    "Seconds that requests waited for pools, for each second.",
                    (Query(f"sum(rate(pointsman_expert_pool_wait_seconds_total{{{MODEL}}}[{RATE}]))", "waiting"),),
                ),
            ),
        ),
    ),
)
