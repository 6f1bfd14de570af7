"""Which attributes a drawn trace shows, under which short label, and how their values are written."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from cluster.telemetry import names

SHOWN_ATTRIBUTES: Final[Mapping[str, str]] = MappingProxyType(
    {
        names.REQUEST_MODEL: "asked",
        names.RESPONSE_MODEL: "model",
        names.ROUTE_MODEL: "chosen",
        names.ROUTE_ROLE: "role",
        names.ROUTE_REASON: "reason",
        names.ENGINE: "engine",
        names.REPLICA: "replica",
        names.ATTEMPTS: "attempts",
        names.ATTEMPT_NUMBER: "number",
        names.ATTEMPT_OUTCOME: "outcome",
        names.ATTEMPT_REASON: "why",
        names.CONFIDENCE: "confidence",
        names.VERDICT_NAME: "check",
        names.VERDICT_OK: "ok",
        names.KV_PRECISION: "kv",
        names.POOL: "pool",
        names.POOL_PAIRS: "pairs",
        names.POOL_REPLICAS: "replicas",
        names.POOLS_WAIT: "pools_wait",
        names.HTTP_STATUS: "status",
        names.ERROR_TYPE: "error",
        names.USAGE_INPUT_TOKENS: "in",
        names.ENGINE_INPUT_TOKENS: "in",
        names.USAGE_CACHED_TOKENS: "cached",
        names.USAGE_OUTPUT_TOKENS: "out",
        names.ENGINE_OUTPUT_TOKENS: "out",
        names.TRUNCATED_TURNS: "truncated_turns",
        names.TRUNCATED_TOKENS: "truncated_tokens",
        names.FINISH_REASONS: "finish",
        names.TTFT: "ttft",
        names.ENGINE_TTFT: "ttft",
        names.ENGINE_QUEUED: "queued",
        names.ENGINE_PREFILL: "prefill",
        names.ENGINE_DECODE: "decode",
        names.REQUEST_ID: "request",
        names.KEY_ID: "key",
    }
)
"""Attribute key to label, in the order in which they are shown."""

IN_SECONDS: Final = frozenset(
    {
        names.TTFT,
        names.ENGINE_TTFT,
        names.ENGINE_E2E,
        names.ENGINE_QUEUED,
        names.ENGINE_PREFILL,
        names.ENGINE_DECODE,
        names.ENGINE_INFERENCE,
        names.POOLS_WAIT,
    }
)
"""Attributes that are seconds."""
