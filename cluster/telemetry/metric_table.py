"""Every metric of the cluster, by Prometheus's rules: base units, `_total` on counters."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class MetricType(StrEnum):
    """Prometheus's types of metrics."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: everything that is said about it, in one place."""

    name: str
    type: MetricType
    unit: str
    """Base unit: `seconds`, `bytes`, `tokens`, `ratio`, or what is counted."""
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()
    """Upper ends of a histogram's buckets, in the unit, ascending."""


_REQUEST_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TTFT_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
_ITL_S: Final = (0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_TOKENS: Final = (8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 32768.0, 131072.0)

_SHARES: Final = tuple(round(tenths / 10, 1) for tenths in range(1, 11))

_MODEL: Final = ("model",)
_LAYER: Final = ("model", "layer")
_REPLICA: Final = ("model", "replica")
_POOL: Final = ("model", "pool")


def _counter(name: str, unit: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(f"pointsman_{name}_total", MetricType.COUNTER, unit, labels, text)


def _gauge(name: str, unit: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(f"pointsman_{name}", MetricType.GAUGE, unit, labels, text)


def _histogram(name: str, unit: str, labels: tuple[str, ...], text: str, buckets: tuple[float, ...]) -> Metric:
    return Metric(f"pointsman_{name}", MetricType.HISTOGRAM, unit, labels, text, buckets)


REQUESTS: Final = _counter(
    "requests", "requests", ("endpoint", "model", "status"), "Requests answered, by HTTP status."
)
REQUEST_SECONDS: Final = _histogram(
    "request_seconds", "seconds", ("endpoint", "model"), "Seconds from arrival to the last byte.", _REQUEST_S
)
TTFT_SECONDS: Final = _histogram(
    "time_to_first_token_seconds", "seconds", _MODEL, "Seconds from arrival to the first token sent.", _TTFT_S
)
ITL_SECONDS: Final = _histogram(
    "inter_token_latency_seconds", "seconds", _MODEL, "Seconds between two tokens of a stream.", _ITL_S
)
PROMPT_TOKENS: Final = _counter("prompt_tokens", "tokens", _MODEL, "Prompt tokens of answered requests.")
COMPLETION_TOKENS: Final = _counter("completion_tokens", "tokens", _MODEL, "Completion tokens of answered requests.")
CACHED_TOKENS: Final = _counter("cached_tokens", "tokens", _MODEL, "Prompt tokens found in the prefix cache.")
TRUNCATED_TOKENS_TOTAL: Final = _counter(
    "truncated_tokens", "tokens", _MODEL, "Tokens that left by the sliding window."
)
PROMPT_SIZE: Final = _histogram("request_prompt_tokens", "tokens", _MODEL, "Prompt tokens of a request.", _TOKENS)
COMPLETION_SIZE: Final = _histogram(
    "request_completion_tokens", "tokens", _MODEL, "Completion tokens of a request.", _TOKENS
)
REFUSED: Final = _counter(
    "refused",
    "requests",
    ("endpoint", "status", "code"),
    "Requests refused before a model, by HTTP status and error code.",
)
DECISIONS: Final = _counter("route_decisions", "requests", ("model", "rule"), "Routing decisions, by model and rule.")
ADMISSIONS: Final = _counter(
    "admissions",
    "requests",
    ("model", "outcome", "code"),
    "Requests that came to a model: admitted, queued or rejected.",
)
ADMISSION_WAITING: Final = _gauge(
    "admission_waiting", "requests", _MODEL, "Requests that wait for their model, in the ingress."
)
RETRIES: Final = _counter("retries", "attempts", _MODEL, "Attempts repeated on another replica before the first byte.")
ATTEMPTS_JUDGED: Final = _counter(
    "attempts_judged", "attempts", ("model", "outcome"), "Attempts at requests whose answers are judged, by outcome."
)
ATTEMPT_CONFIDENCE: Final = _histogram(
    "attempt_confidence_ratio", "ratio", _MODEL, "How sure models were of answers that are judged, 0 to 1.", _SHARES
)
ROUTE_REPEATS: Final = _counter(
    "route_repeats",
    "requests",
    ("outcome",),
    "Requests that are the same as an earlier one but for case, spaces and punctuation, by whether they went to the same model.",
)
LATENCY_TARGET_MISSES: Final = _counter(
    "latency_target_misses",
    "requests",
    ("model", "role"),
    "Streams whose first token came later than the role's target.",
)
DISCONNECTS: Final = _counter("client_disconnects", "requests", ("endpoint",), "Requests whose client went away.")
IN_FLIGHT: Final = _gauge("requests_in_flight", "requests", ("endpoint",), "Requests in the ingress.")
LOOP_LAG_SECONDS: Final = _gauge("event_loop_lag_seconds", "seconds", ("process",), "Lag of a process's event loop.")

REPLICAS: Final = _gauge(
    "replicas",
    "replicas",
    ("model", "state"),
    "Replicas, by state; `parked` is 1 for a model that has none until it is asked for.",
)
ENGINE_RUNNING: Final = _gauge("engine_running", "requests", _REPLICA, "Requests in the engine's running batch.")
ENGINE_WAITING: Final = _gauge("engine_waiting", "requests", _REPLICA, "Requests queued inside the engine.")
KV_USAGE: Final = _gauge("kv_usage_ratio", "ratio", _REPLICA, "KV blocks in use, 0 to 1.")
KV_BLOCKS: Final = _gauge("kv_blocks", "blocks", _REPLICA, "KV blocks in the pool.")
PREEMPTIONS: Final = _counter("preemptions", "preemptions", _REPLICA, "Sequences preempted for lack of KV blocks.")
FORCED_PREEMPTIONS: Final = _counter(
    "forced_preemptions", "preemptions", _REPLICA, "Sequences preempted by changes of KV precision."
)
RECOMPUTED_TOKENS: Final = _counter(
    "recomputed_tokens", "tokens", _REPLICA, "Tokens whose KV was computed again after a preemption."
)
KV_EVICTIONS: Final = _counter("kv_evictions", "blocks", _REPLICA, "KV blocks that were used anew.")
KV_LIFETIME: Final = _counter(
    "kv_block_lifetime_seconds", "seconds", _REPLICA, "Seconds for which these blocks had held what was in them."
)
KV_SWITCHES_TOTAL: Final = _counter("kv_switches", "switches", _REPLICA, "Changes of KV precision.")
KV_PRECISION_INFO: Final = _gauge(
    "kv_precision_info", "replicas", ("model", "replica", "precision"), "KV precision in force: 1."
)
PRECISION_LEVEL: Final = _gauge(
    "precision_level", "levels", _REPLICA, "Level of the precision ladder that a replica is at, 0 for normal."
)
LEVEL_CHANGES: Final = _counter(
    "precision_level_changes",
    "changes",
    ("model", "level", "cause", "outcome"),
    "Steps on the precision ladder that this ingress ordered, by the level they led to.",
)
SAMPLING_CHANGED: Final = _counter(
    "sampling_changed", "requests", ("model", "level"), "Requests whose sampling the precision ladder changed."
)
PREFIX_QUERIES: Final = _counter("prefix_queries", "tokens", _REPLICA, "Tokens looked up in the prefix cache.")
PREFIX_HITS: Final = _counter("prefix_hits", "tokens", _REPLICA, "Tokens found in the prefix cache.")
ENGINE_PROMPT_TOKENS: Final = _counter("engine_prompt_tokens", "tokens", _REPLICA, "Prompt tokens processed.")
ENGINE_GENERATED_TOKENS: Final = _counter("engine_generated_tokens", "tokens", _REPLICA, "Tokens generated.")
ENGINE_DEATHS: Final = _counter("engine_deaths", "engines", ("model", "cause"), "Engines that died or hung.")

REPLICA_SECONDS: Final = _counter(
    "replica_seconds", "seconds", ("model", "state"), "Seconds that replicas were busy or idle."
)
ENGINE_SECONDS: Final = _counter("engine_seconds", "seconds", _MODEL, "Seconds that requests held an engine, added up.")
COST: Final = _counter("cost", "money", _MODEL, "What external models were paid, in the money of the config.")
RECORDS_WRITTEN: Final = _counter("records_written", "records", ("process",), "Records of decisions in the database.")
RECORDS_QUEUED: Final = _gauge("records_queued", "records", ("process",), "Records that wait for the database.")
RECORDS_DROPPED: Final = _counter("records_dropped", "records", ("process", "reason"), "Records lost, by reason.")

EXPERT_TOKENS: Final = _counter(
    "expert_tokens",
    "tokens",
    ("model", "layer", "expert"),
    "Tokens by expert of a sparse model, each counted for every expert it went to; only of models with few experts.",
)
EXPERT_IMBALANCE: Final = _gauge(
    "expert_imbalance_ratio", "ratio", _LAYER, "Tokens of a layer's busiest expert by those of its mean one, lately."
)
EXPERT_ENTROPY: Final = _gauge(
    "expert_entropy_ratio", "ratio", _LAYER, "How evenly tokens spread over a layer's experts lately, 0 to 1."
)
EXPERTS_HOT: Final = _gauge("experts_hot", "experts", _MODEL, "Experts that are hot.")
REQUEST_EXPERTS: Final = _histogram(
    "request_experts_ratio", "ratio", _MODEL, "Share of all experts of all layers that a request used.", _SHARES
)
EXPERTS_REQUEST_SECONDS: Final = _histogram(
    "experts_request_seconds",
    "seconds",
    ("model", "width"),
    "Seconds that a request held an engine, by the share of all experts that it used.",
    _REQUEST_S,
)

EXPERT_POOL_WANTED: Final = _gauge(
    "expert_pool_replicas_wanted", "replicas", _POOL, "Replicas that a pool of experts is to have, 0 for a parked one."
)
EXPERT_POOL_REPLICAS: Final = _gauge(
    "expert_pool_replicas", "replicas", _POOL, "Replicas of a pool of experts that answer."
)
EXPERT_POOL_PAIRS: Final = _gauge(
    "expert_pool_pairs_per_second", "pairs", _POOL, "Pairs of token and expert a second that come for a pool's experts."
)
EXPERT_POOL_LOAD: Final = _gauge(
    "expert_pool_load_ratio", "ratio", _POOL, "Pairs a second by what the pool's answering replicas can compute."
)
EXPERT_POOL_WEIGHT_BYTES: Final = _gauge(
    "expert_pool_weight_bytes", "bytes", _POOL, "Weights in all replicas of a pool of experts."
)
EXPERT_POOL_OVERHEAD_BYTES: Final = _gauge(
    "expert_pool_overhead_bytes", "bytes", _POOL, "Memory of the processes of a pool's replicas beside the weights."
)
EXPERT_POOL_CHANGES: Final = _counter(
    "expert_pool_changes",
    "changes",
    ("model", "cause"),
    "Changes of the number of replicas that a pool of experts is to have, by cause.",
)
EXPERT_ROWS_DEGRADED: Final = _counter(
    "expert_rows_degraded", "rows", _MODEL, "Tokens times layers in which other experts stood in."
)
EXPERT_ROWS_RESENT: Final = _counter(
    "expert_rows_resent", "rows", _MODEL, "Tokens times layers that were sent to pools of experts a second time."
)
EXPERT_POOL_WAIT: Final = _counter(
    "expert_pool_wait_seconds",
    "seconds",
    _MODEL,
    "Seconds that requests waited for pools of experts, added up; those that shared a step count it each.",
)

SPANS_STORED: Final = _counter("spans_stored", "spans", ("process",), "Spans taken by the local store or a collector.")
SPANS_DROPPED: Final = _counter("spans_dropped", "spans", ("process",), "Spans lost: queue full or export failed.")
LOG_LINES_DROPPED: Final = _counter("log_lines_dropped", "lines", ("process",), "Log lines lost.")


def all_metrics() -> tuple[Metric, ...]:
    """Every metric of this module, by name."""
    found = (value for value in globals().values() if isinstance(value, Metric))
    return tuple(sorted(found, key=lambda metric: metric.name))
