"""Replicas, their engines, and the processes of the cluster."""

from __future__ import annotations

from typing import Final

from deployments.dashboards.model import MODELS, RATE, Dashboard, Panel, Query, Row, Unit
from deployments.dashboards.overview import MODEL

EACH: Final = "{{model}} {{replica}}"

REPLICAS: Final = Dashboard(
    uid="pointsman-replicas",
    title="Pointsman: replicas",
    description="How many replicas there are, what each has to do, and whether processes are well.",
    variables=(MODEL,),
    rows=(
        Row(
            "Replicas",
            (
                Panel(
                    "Ready by model",
                    "Replicas that answer.",
                    (Query(f'max by (model) (pointsman_replicas{{state="ready",{MODELS}}})', "{{model}}"),),
                ),
                Panel(
                    "Silent, and parked models",
                    "Replicas that do not say how they are; and models that have none until they are asked for.",
                    (
                        Query(f'max by (model) (pointsman_replicas{{state="silent",{MODELS}}})', "{{model}} silent"),
                        Query(f'max by (model) (pointsman_replicas{{state="parked",{MODELS}}})', "{{model}} parked"),
                    ),
                ),
                Panel(
                    "Busy by model",
                    "Share of their time in which replicas worked.",
                    (
                        Query(
                            f'sum by (model) (rate(pointsman_replica_seconds_total{{state="busy",{MODELS}}}[{RATE}])) / '
                            f"sum by (model) (rate(pointsman_replica_seconds_total{{{MODELS}}}[{RATE}]))",
                            "{{model}}",
                        ),
                    ),
                    unit=Unit.RATIO,
                    most=1,
                ),
                Panel(
                    "Engines that died",
                    "In ten minutes, by cause.",
                    (
                        Query(
                            f"sum by (model, cause) (increase(pointsman_engine_deaths_total{{{MODELS}}}[10m]))",
                            "{{model}} {{cause}}",
                        ),
                    ),
                    bad_above=1,
                ),
            ),
        ),
        Row(
            "Engines",
            (
                Panel(
                    "Running",
                    "Requests in the running batch.",
                    (Query(f"pointsman_engine_running{{{MODELS}}}", EACH),),
                    stacked=True,
                ),
                Panel(
                    "Waiting",
                    "Requests queued inside the engine.",
                    (Query(f"pointsman_engine_waiting{{{MODELS}}}", EACH),),
                    stacked=True,
                ),
                Panel(
                    "Prompt tokens",
                    "Prompt tokens processed a second.",
                    (
                        Query(
                            f"max by (model, replica) (rate(pointsman_engine_prompt_tokens_total{{{MODELS}}}[{RATE}]))",
                            EACH,
                        ),
                    ),
                    unit=Unit.PER_SECOND,
                    stacked=True,
                ),
                Panel(
                    "Generated tokens",
                    "Tokens generated a second.",
                    (
                        Query(
                            "max by (model, replica) "
                            f"(rate(pointsman_engine_generated_tokens_total{{{MODELS}}}[{RATE}]))",
                            EACH,
                        ),
                    ),
                    unit=Unit.PER_SECOND,
                    stacked=True,
                ),
            ),
        ),
        Row(
            "Processes",
            (
                Panel(
                    "Ingresses",
                    "1: Prometheus reads its metrics.",
                    (Query('up{job="pointsman"}', "{{instance}}"),),
                    most=1,
                ),
                Panel(
                    "Event loop lag",
                    "How late the event loop of an ingress is; all its requests wait so long.",
                    (Query("pointsman_event_loop_lag_seconds", "{{instance}} {{process}}"),),
                    unit=Unit.SECONDS,
                    bad_above=0.25,
                ),
                Panel(
                    "Spans and records kept",
                    "Spans and records of decisions that were stored a second.",
                    (
                        Query(f"sum by (instance) (rate(pointsman_spans_stored_total[{RATE}]))", "{{instance}} spans"),
                        Query(
                            f"sum by (instance) (rate(pointsman_records_written_total[{RATE}]))", "{{instance}} records"
                        ),
                    ),
                    unit=Unit.PER_SECOND,
                ),
                Panel(
                    "Records that wait",
                    "Records of decisions that wait for the database.",
                    (Query("sum by (instance) (pointsman_records_queued)", "{{instance}}"),),
                ),
                Panel(
                    "Lost",
                    "Spans, log lines and records that were lost a second.",
                    (
                        Query(f"sum by (instance) (rate(pointsman_spans_dropped_total[{RATE}]))", "{{instance}} spans"),
                        Query(
                            f"sum by (instance) (rate(pointsman_log_lines_dropped_total[{RATE}]))", "{{instance}} lines"
                        ),
                        Query(
                            f"sum by (instance, reason) (rate(pointsman_records_dropped_total[{RATE}]))",
                            "{{instance}} records: {{reason}}",
                        ),
                    ),
                    unit=Unit.PER_SECOND,
                ),
            ),
        ),
    ),
)
