"""Every name under which the cluster reports on itself in spans and logs; metrics are in `metric_table`.

Attributes follow OpenTelemetry's semantic conventions (GenAI and general) where these have a name; the rest starts with
`pointsman.`.
"""

from __future__ import annotations

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
SPAN_PRECISION: Final = "precision_change"
"""A step of a replica on its precision ladder; it belongs to no request."""
EVENT_KV_SWITCH: Final = "kv_precision_switch"
"""On a request's span in the replica: the KV precision changed under it."""
SPAN_POOL: Final = "experts.pool"
"""What one pool of experts did for a request, from the first step to the last; a child of the replica's span."""
EVENT_EXPERTS_DEGRADED: Final = "experts_degraded"
"""On a request's span in the replica: other experts stood in for some that no pool could compute."""
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
"""Number format of the KV cache, for example `bfloat16`."""
KV_PRECISION_BEFORE: Final = "pointsman.kv.precision_before"
KV_PREEMPTIONS: Final = "pointsman.kv.preemptions"
"""Times that the request lost its KV."""
KV_SWITCHES: Final = "pointsman.kv.switches"
"""Of these, by a change of KV precision."""
KV_RECOMPUTED_TOKENS: Final = "pointsman.kv.recomputed_tokens"
"""Tokens whose KV was computed again."""
KV_PREEMPTED: Final = "pointsman.kv.preempted_requests"
"""Requests that a change of KV precision preempted."""
KV_PAUSE: Final = "pointsman.kv.pause_s"
"""Seconds for which the engine stood still."""
KV_POOL_BLOCKS: Final = "pointsman.kv.pool_blocks"
"""KV blocks in the pool."""
EXPERT_TOKENS: Final = "pointsman.experts.tokens"
"""Tokens that went through a sparse model's experts."""
EXPERT_DISTINCT: Final = "pointsman.experts.distinct"
"""Pairs of layer and expert that were used."""
EXPERT_ENTROPY: Final = "pointsman.experts.entropy"
"""How evenly tokens spread over the experts of a layer, 0 to 1, mean over layers."""
EXPERT_TOP: Final = "pointsman.experts.top"
"""The most used, each as `layer 12 expert 3 0.61`, the share of tokens at the end."""
POOL: Final = "pointsman.pool.name"
"""A pool of experts."""
POOL_PAIRS: Final = "pointsman.pool.pairs"
"""Pairs of token and expert that the pool computed for the request, over all layers."""
POOL_REPLICAS: Final = "pointsman.pool.replicas"
"""Replicas of the pool that took part."""
POOLS_STEPS: Final = "pointsman.pools.steps"
"""Steps of the engine that sent tokens of the request to pools."""
POOLS_WAIT: Final = "pointsman.pools.wait_s"
"""Seconds of those steps in which the engine waited for pools."""
POOLS_RESENT_ROWS: Final = "pointsman.pools.resent_rows"
"""Tokens times layers that were sent a second time."""
POOLS_DEGRADED_ROWS: Final = "pointsman.pools.degraded_rows"
"""Tokens times layers in which other experts stood in."""
POOLS_NOT_SHOWN: Final = "pointsman.pools.not_shown"
"""Pools that took part and have no span, as there are too many."""
LEVEL: Final = "pointsman.level"
"""Level of the precision ladder, 0 for normal."""
LEVEL_NAME: Final = "pointsman.level.name"
LEVEL_BEFORE: Final = "pointsman.level.before"
LEVEL_CAUSE: Final = "pointsman.level.cause"
LEVEL_REASON: Final = "pointsman.level.reason"
LEVEL_CHANGED: Final = "pointsman.level.changed"
"""What the level changed of a request, field by field."""
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
