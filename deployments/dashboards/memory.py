"""KV memory, and how far precision was lowered for want of it."""

from __future__ import annotations

from typing import Final

from deployments.dashboards.model import MODELS, RATE, Dashboard, Panel, Query, Row, Unit
from deployments.dashboards.overview import MODEL

EACH: Final = "{{model}} {{replica}}"


def _by_replica(metric: str) -> Query:
    return Query(f"sum by (model, replica) (rate({metric}{{{MODELS}}}[{RATE}]))", EACH)


MEMORY: Final = Dashboard(
    uid="pointsman-kv",
    title="Pointsman: KV and precision",
    description="How full KV caches are, what is lost and computed again, and at which level of precision replicas are.",
    variables=(MODEL,),
    rows=(
        Row(
            "KV cache",
            (
                Panel(
                    "KV blocks in use",
                    "Share of the blocks of each replica. Above 0.95 requests queue in the engine or are preempted.",
                    (Query(f"pointsman_kv_usage_ratio{{{MODELS}}}", EACH),),
                    unit=Unit.RATIO,
                    most=1,
                    bad_above=0.95,
                ),
                Panel(
                    "KV blocks",
                    "Blocks in the pool: fp8 doubles them.",
                    (Query(f"pointsman_kv_blocks{{{MODELS}}}", EACH),),
                ),
                Panel(
                    "Prefix hits by model",
                    "Share of the prompt tokens that were in the prefix cache.",
                    (Query(f"model:pointsman_prefix_hits:ratio_rate5m{{{MODELS}}}", "{{model}}"),),
                    unit=Unit.RATIO,
                    most=1,
                ),
                Panel(
                    "Life of a block",
                    "Seconds for which a block had held what was in it when it was used anew: short is pressure.",
                    (
                        Query(
                            f"sum by (model) (rate(pointsman_kv_block_lifetime_seconds_total{{{MODELS}}}[{RATE}])) / "
                            f"(sum by (model) (rate(pointsman_kv_evictions_total{{{MODELS}}}[{RATE}])) > 0)",
                            "{{model}}",
                        ),
                    ),
                    unit=Unit.SECONDS,
                ),
            ),
        ),
        Row(
            "Thrash",
            (
                Panel(
                    "Work done twice by model",
                    "Share of the computed tokens that preemptions had computed before.",
                    (Query(f"model:pointsman_recomputed_tokens:ratio_rate5m{{{MODELS}}}", "{{model}}"),),
                    unit=Unit.RATIO,
                    most=1,
                    bad_above=0.1,
                ),
                Panel(
                    "Preemptions",
                    "Sequences that lost their KV a second, for lack of blocks.",
                    (_by_replica("pointsman_preemptions_total"),),
                    unit=Unit.PER_SECOND,
                ),
                Panel(
                    "Preemptions by switches",
                    "Sequences that lost their KV a second because its precision changed.",
                    (_by_replica("pointsman_forced_preemptions_total"),),
                    unit=Unit.PER_SECOND,
                ),
                Panel(
                    "Left by the window",
                    "Tokens a second that long conversations dropped at the sliding window.",
                    (
                        Query(
                            f"sum by (model) (rate(pointsman_truncated_tokens_total{{{MODELS}}}[{RATE}]))", "{{model}}"
                        ),
                    ),
                    unit=Unit.PER_SECOND,
                ),
            ),
        ),
        Row(
            "Precision",
            (
                Panel(
                    "Level by replica",
                    "Level of the precision ladder; 0 is normal.",
                    (Query(f"pointsman_precision_level{{{MODELS}}}", EACH),),
                ),
                Panel(
                    "KV precision in force",
                    "Replicas at each number format of the KV cache.",
                    (
                        Query(
                            "sum by (model, precision) "
                            f"(max by (model, replica, precision) (pointsman_kv_precision_info{{{MODELS}}}))",
                            "{{model}} {{precision}}",
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    "Steps by cause",
                    "Steps on the ladder in ten minutes, and those that failed.",
                    (
                        Query(
                            "sum by (model, level, cause, outcome) "
                            f"(increase(pointsman_precision_level_changes_total{{{MODELS}}}[10m]))",
                            "{{model}} to {{level}}: {{cause}} {{outcome}}",
                        ),
                    ),
                ),
                Panel(
                    "Switches of KV precision",
                    "Changes of the number format in ten minutes.",
                    (Query(f"max by (model, replica) (increase(pointsman_kv_switches_total{{{MODELS}}}[10m]))", EACH),),
                ),
                Panel(
                    "Requests with changed sampling",
                    "Requests a second whose sampling a level changed.",
                    (
                        Query(
                            f"sum by (model, level) (rate(pointsman_sampling_changed_total{{{MODELS}}}[{RATE}]))",
                            "{{model}} {{level}}",
                        ),
                    ),
                    unit=Unit.REQUESTS,
                ),
            ),
        ),
    ),
)
