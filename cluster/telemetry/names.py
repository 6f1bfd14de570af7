"""Every name under which the cluster reports on itself: spans, attributes, metrics, log fields.

Attributes follow OpenTelemetry's semantic conventions (GenAI and general) where these have a name; the rest starts with
`pointsman.`. Metrics follow Prometheus's rules: base units, `_total` on counters.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

# ------------------------------------------------------------------------------------------------------- spans

SPAN_ROUTE: Final = "route"
"""The routing decision, in the ingress."""
SPAN_ATTEMPT: Final = "attempt"
"""One attempt at a request whose answers are judged, in the ingress."""
SPAN_VERIFY: Final = "verify"
"""The checks on one answer, in the ingress."""
SPAN_REPLICA: Final = "replica"
"""A request in a replica, around its engine."""
SPAN_ENGINE: Final = "llm_request"
"""vLLM's own span of a request."""
SPAN_UPSTREAM: Final = "upstream"
"""The call of an external model's server."""

OPERATION_CHAT: Final = "chat"
OPERATION_COMPLETION: Final = "text_completion"
OPERATION_EMBEDDING: Final = "embeddings"
"""Values of `gen_ai.operation.name`. The ingress's span is named by the operation."""

# -------------------------------------------------------------------------------------- attributes: conventions

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
PROVIDER_POINTSMAN: Final = "pointsman"
"""Value of PROVIDER on the ingress's span; the conventions let a system of its own name itself."""
OUTPUT_TYPE: Final = "gen_ai.output.type"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
REQUEST_TOP_P: Final = "gen_ai.request.top_p"
REQUEST_SEED: Final = "gen_ai.request.seed"
REQUEST_CHOICES: Final = "gen_ai.request.choice.count"
REQUEST_STREAM: Final = "gen_ai.request.stream"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_ID: Final = "gen_ai.response.id"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
TTFT: Final = "gen_ai.response.time_to_first_chunk"
"""Seconds from the arrival of the request to the first token sent."""
USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
USAGE_CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
EMBEDDING_DIMENSIONS: Final = "gen_ai.embeddings.dimension.count"

ERROR_TYPE: Final = "error.type"
HTTP_METHOD: Final = "http.request.method"
HTTP_ROUTE: Final = "http.route"
HTTP_STATUS: Final = "http.response.status_code"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"

SERVICE_NAME: Final = "service.name"
SERVICE_VERSION: Final = "service.version"
SERVICE_INSTANCE_ID: Final = "service.instance.id"
HOST_NAME: Final = "host.name"
PROCESS_PID: Final = "process.pid"

# ----------------------------------------------------------------------------------- attributes: vLLM's own span

ENGINE_INPUT_TOKENS: Final = "gen_ai.usage.prompt_tokens"
ENGINE_OUTPUT_TOKENS: Final = "gen_ai.usage.completion_tokens"
ENGINE_TTFT: Final = "gen_ai.latency.time_to_first_token"
ENGINE_E2E: Final = "gen_ai.latency.e2e"
ENGINE_QUEUED: Final = "gen_ai.latency.time_in_queue"
ENGINE_PREFILL: Final = "gen_ai.latency.time_in_model_prefill"
ENGINE_DECODE: Final = "gen_ai.latency.time_in_model_decode"
ENGINE_INFERENCE: Final = "gen_ai.latency.time_in_model_inference"
"""All of these in seconds."""

# ---------------------------------------------------------------------------------------- attributes: Pointsman

CLUSTER: Final = "pointsman.cluster"
PROCESS_ROLE: Final = "pointsman.process.role"
"""`ingress`, `replica:dense` and the like."""
REQUEST_ID: Final = "pointsman.request.id"
KEY_ID: Final = "pointsman.key.id"
"""The public part of the caller's key."""
TENANT: Final = "pointsman.tenant"
ROUTE_MODEL: Final = "pointsman.route.model"
ROUTE_ROLE: Final = "pointsman.route.role"
ROUTE_REASON: Final = "pointsman.route.reason"
ROUTE_RULE: Final = "pointsman.route.rule"
ROUTE_CANDIDATES: Final = "pointsman.route.candidates"
ROUTE_SCORES: Final = "pointsman.route.scores"
"""Scores of the candidates, 0 to 1, in their order; 0 for those that a filter is against, and where a model was named."""
PROMPT_TOKENS_ESTIMATE: Final = "pointsman.prompt.tokens_estimate"
LATENCY_TARGET: Final = "pointsman.contract.latency_target_s"
"""Seconds to the first token that the role aims at."""
ATTEMPTS: Final = "pointsman.attempts"
ATTEMPT_NUMBER: Final = "pointsman.attempt.number"
"""Counted from 1."""
ATTEMPT_OUTCOME: Final = "pointsman.attempt.outcome"
"""`accepted`, `best`, `requeried`, `escalated`, `template` or `failed`."""
ATTEMPT_REASON: Final = "pointsman.attempt.reason"
"""Why it was accepted or not, for people."""
CONFIDENCE: Final = "pointsman.confidence.score"
"""How sure the model was, 0 to 1."""
VERDICT_OK: Final = "pointsman.verdict.ok"
VERDICT_NAME: Final = "pointsman.verdict.name"
"""The check that decided."""
VERDICT_SCORE: Final = "pointsman.verdict.score"
REPLICA: Final = "pointsman.replica.id"
ROUTE_REPLICA: Final = "pointsman.route.replica"
"""The replica that was chosen, in the ingress's span."""
ROUTE_REPLICA_REASON: Final = "pointsman.route.replica_reason"
ENGINE: Final = "pointsman.engine"
"""`vllm`, `simulated`, `encoder` or `external`."""
KV_PRECISION: Final = "pointsman.kv.precision"
TRUNCATED_TURNS: Final = "pointsman.window.truncated_turns"
TRUNCATED_TOKENS: Final = "pointsman.window.truncated_tokens"
LINK_REASON: Final = "pointsman.link.reason"
LINK_UNAUTHENTICATED: Final = "unauthenticated"
"""Value of LINK_REASON: the caller claimed this context without a key, so it is a link, not the parent."""

INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
MESSAGE_ATTRIBUTES: Final = frozenset({INPUT_MESSAGES, OUTPUT_MESSAGES})
"""What was said: the only content that is recorded once the operator asks for it."""

CONTENT_ATTRIBUTES: Final = frozenset(
    {
        INPUT_MESSAGES,
        OUTPUT_MESSAGES,
        "gen_ai.prompt",
        "gen_ai.completion",
        "gen_ai.system_instructions",
        "gen_ai.request.stop_sequences",
        "gen_ai.retrieval.documents",
        "gen_ai.retrieval.query.text",
        "gen_ai.tool.call.arguments",
        "gen_ai.tool.call.result",
        "gen_ai.tool.definitions",
        "gen_ai.tool.description",
        "exception.message",
        "exception.stacktrace",
        "url.full",
        "url.query",
    }
)
"""Attributes that may hold a caller's or a model's words, and so do those whose names go on behind one of them and a dot.

All are kept out of spans; MESSAGE_ATTRIBUTES are let in if the operator asks for content.
"""

LOG_IDENTIFIERS: Final = frozenset(
    {
        "trace_id",
        "span_id",
        "request_id",
        "key_id",
        "tenant",
        "cluster",
        "model",
        "role",
        "kind",
        "engine",
        "replica",
        "application",
        "deployment",
        "process",
        "node",
        "endpoint",
        "route",
        "method",
        "rule",
        "code",
        "param",
        "error",
        "error_type",
        "host",
        "port",
        "attempt",
        "signal",
        "state",
        "phase",
        "finish_reason",
        "version",
    }
)
"""Fields of log records that carry identifiers of ours, never text of a caller."""

# ------------------------------------------------------------------------------------------------------- metrics


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

_MODEL: Final = ("model",)
_REPLICA: Final = ("model", "replica")


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
    "refused", "requests", ("endpoint", "code"), "Requests refused before a model, by error code."
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
LATENCY_TARGET_MISSES: Final = _counter(
    "latency_target_misses",
    "requests",
    ("model", "role"),
    "Streams whose first token came later than the role's target.",
)
DISCONNECTS: Final = _counter("client_disconnects", "requests", ("endpoint",), "Requests whose client went away.")
IN_FLIGHT: Final = _gauge("requests_in_flight", "requests", ("endpoint",), "Requests in the ingress.")
LOOP_LAG_SECONDS: Final = _gauge("event_loop_lag_seconds", "seconds", ("process",), "Lag of a process's event loop.")

REPLICAS: Final = _gauge("replicas", "replicas", ("model", "state"), "Replicas, by state.")
ENGINE_RUNNING: Final = _gauge("engine_running", "requests", _REPLICA, "Requests in the engine's running batch.")
ENGINE_WAITING: Final = _gauge("engine_waiting", "requests", _REPLICA, "Requests queued inside the engine.")
KV_USAGE: Final = _gauge("kv_usage_ratio", "ratio", _REPLICA, "KV blocks in use, 0 to 1.")
KV_BLOCKS: Final = _gauge("kv_blocks", "blocks", _REPLICA, "KV blocks in the pool.")
PREEMPTIONS: Final = _counter("preemptions", "preemptions", _REPLICA, "Sequences preempted for lack of KV blocks.")
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

SPANS_STORED: Final = _counter("spans_stored", "spans", ("process",), "Spans taken by the local store or a collector.")
SPANS_DROPPED: Final = _counter("spans_dropped", "spans", ("process",), "Spans lost: queue full or export failed.")
LOG_LINES_DROPPED: Final = _counter("log_lines_dropped", "lines", ("process",), "Log lines lost.")


def all_metrics() -> tuple[Metric, ...]:
    """Every metric of this module, by name."""
    found = (value for value in globals().values() if isinstance(value, Metric))
    return tuple(sorted(found, key=lambda metric: metric.name))
