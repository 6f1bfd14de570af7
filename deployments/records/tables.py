"""The tables of the records database, and rows out of records. The steps that make them are in `migrations/versions`."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import JSON, BigInteger, Boolean, Column, Double, Index, Integer, MetaData, String, Table, Text

from cluster.records.precision_change import PrecisionChange
from cluster.records.record import MAX_TEXT, DecisionRecord, told_candidates, told_signals, told_trail

METADATA: Final = MetaData()

DECISIONS: Final = Table(
    "decisions",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("request_id", String(128), nullable=False),
    Column("trace_id", String(32), nullable=False),
    Column("at", Double, nullable=False),
    Column("tenant", String(256), nullable=False),
    Column("key_id", String(64)),
    Column("key_name", String(256)),
    Column("endpoint", String(32), nullable=False),
    Column("asked_model", String(256), nullable=False),
    Column("model", String(64), nullable=False),
    Column("role", String(64)),
    Column("rule", String(128), nullable=False),
    Column("reason", Text, nullable=False),
    Column("status", Integer, nullable=False),
    Column("error", String(64)),
    Column("streamed", Boolean, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("finish_reason", String(64)),
    Column("confidence", Double),
    Column("verified", Boolean),
    Column("precision_compute", String(64)),
    Column("precision_kv", String(64)),
    Column("sampling", String(32)),
    Column("ttft_s", Double),
    Column("total_s", Double, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("engine_seconds", Double, nullable=False),
    Column("cost", Double, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("candidates", JSON, nullable=False),
    Column("signals", JSON, nullable=False),
    Column("trail", JSON, nullable=False),
    Index("decisions_by_time", "at"),
    Index("decisions_by_request", "request_id"),
    Index("decisions_by_trace", "trace_id"),
)
"""One row a request."""

MODEL_COSTS: Final = Table(
    "model_costs",
    METADATA,
    Column("decision_id", String(32), primary_key=True),
    Column("model", String(64), primary_key=True),
    Column("at", Double, nullable=False),
    Column("calls", Integer, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("engine_seconds", Double, nullable=False),
    Column("cost", Double, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Index("model_costs_by_time", "at"),
)
"""One row a request and model that worked on it."""

REPLICA_SECONDS: Final = Table(
    "replica_seconds",
    METADATA,
    Column("minute", BigInteger, primary_key=True),
    Column("model", String(64), primary_key=True),
    Column("ingress", String(64), primary_key=True),
    Column("busy_s", Double, nullable=False),
    Column("idle_s", Double, nullable=False),
)
"""One row a minute, model and ingress: each ingress sees all replicas."""

LOSSES: Final = Table(
    "losses",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("at", Double, nullable=False),
    Column("ingress", String(64), nullable=False),
    Column("reason", String(64), nullable=False),
    Column("records", BigInteger, nullable=False),
)
"""How many records are missing, and why; written once the database takes something again."""

PRECISION_CHANGES: Final = Table(
    "precision_changes",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("at", Double, nullable=False),
    Column("model", String(64), nullable=False),
    Column("replica", String(256), nullable=False),
    Column("cause", String(64), nullable=False),
    Column("reason", Text, nullable=False),
    Column("level_before", Integer, nullable=False),
    Column("level", Integer, nullable=False),
    Column("level_name", String(64), nullable=False),
    Column("kv_before", String(64), nullable=False),
    Column("kv_after", String(64), nullable=False),
    Column("pause_s", Double, nullable=False),
    Column("preempted", Integer, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("blocks_before", BigInteger, nullable=False),
    Column("blocks_after", BigInteger, nullable=False),
    Column("error", Text),
    Index("precision_changes_by_time", "at"),
)
"""One row a change on a replica's precision ladder, whoever of the ingresses wrote it first."""

Row = dict[str, Any]


def decision_row(record: DecisionRecord) -> Row:
    """The row of one request. Text of bounded columns is cut to their length, which PostgreSQL insists on."""
    cost, precision = record.cost, record.precision
    row: Row = {
        "id": record.id,
        "request_id": record.request_id,
        "trace_id": record.trace_id,
        "at": record.at,
        "tenant": record.tenant,
        "key_id": record.key_id,
        "key_name": record.key_name,
        "endpoint": record.endpoint,
        "asked_model": record.asked_model,
        "model": record.model,
        "role": record.role,
        "rule": record.rule,
        "reason": record.reason[:MAX_TEXT],
        "status": record.status,
        "error": record.error,
        "streamed": record.streamed,
        "attempts": record.attempts,
        "finish_reason": record.finish_reason,
        "confidence": record.confidence,
        "verified": record.verified,
        "precision_compute": None if precision is None else precision.compute,
        "precision_kv": None if precision is None else precision.kv,
        "sampling": record.sampling,
        "ttft_s": record.ttft_s,
        "total_s": record.total_s,
        "prompt_tokens": cost.prompt_tokens,
        "completion_tokens": cost.completion_tokens,
        "cached_tokens": cost.cached_tokens,
        "engine_seconds": cost.engine_seconds,
        "cost": cost.cost,
        "estimated": cost.estimated,
        "candidates": told_candidates(record.candidates),
        "signals": told_signals(record.signals),
        "trail": told_trail(record.trail),
    }
    return _fitting(DECISIONS, row)


def cost_rows(record: DecisionRecord) -> list[Row]:
    """A row for each model that worked on the request."""
    return [
        {
            "decision_id": record.id,
            "model": one.model,
            "at": record.at,
            "calls": one.calls,
            "prompt_tokens": one.prompt_tokens,
            "completion_tokens": one.completion_tokens,
            "cached_tokens": one.cached_tokens,
            "engine_seconds": one.engine_seconds,
            "cost": one.cost,
            "estimated": one.estimated,
        }
        for one in record.cost.models
    ]


def change_row(change: PrecisionChange) -> Row:
    """The row of one change on a precision ladder, its text cut as that of a request."""
    row: Row = {
        "id": change.id,
        "at": change.at,
        "model": change.model,
        "replica": change.replica,
        "cause": change.cause,
        "reason": change.reason[:MAX_TEXT],
        "level_before": change.level_before,
        "level": change.level,
        "level_name": change.level_name,
        "kv_before": change.kv_before,
        "kv_after": change.kv_after,
        "pause_s": change.pause_s,
        "preempted": change.preempted,
        "tokens": change.tokens,
        "blocks_before": change.blocks_before,
        "blocks_after": change.blocks_after,
        "error": None if change.error is None else change.error[:MAX_TEXT],
    }
    return _fitting(PRECISION_CHANGES, row)


def _fitting(table: Table, row: Row) -> Row:
    return {name: _cut(value, table.c[name]) if isinstance(value, str) else value for name, value in row.items()}


def _cut(value: str, column: Column[Any]) -> str:
    length = getattr(column.type, "length", None)
    # PostgreSQL knows no NUL in text, and UTF-8 no lone surrogates.
    clean = value.replace("\0", "").encode("utf-8", "replace").decode()
    return clean if length is None else clean[:length]
