"""The replica's own span, between the ingress's and the engine's."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cluster.experts.load import ExpertUse
from cluster.experts.pool_use import PoolUse
from cluster.records.precision_change import PrecisionChange
from cluster.telemetry import names
from deployments.engines.protocol import EngineReply, EngineRequest

MAX_POOL_SPANS: Final = 16
"""Pools of experts that a request has spans of, those that computed most; there may be hundreds."""

_propagator = TraceContextTextMapPropagator()


@dataclass(frozen=True, slots=True)
class ReplicaSpan:
    """A running request's span. `trace_headers` make the engine's own span its child."""

    span: Span
    trace_headers: Mapping[str, str]
    tracer: Tracer
    """Makes the spans below it."""

    def lived_through(self, change: PrecisionChange) -> None:
        """The KV precision changed under the request."""
        self.span.add_event(names.EVENT_KV_SWITCH, change_attributes(change))

    def finished(self, reply: EngineReply) -> None:
        """Note how the request ended."""
        usage, kv = reply.usage, reply.kv
        if kv.precision is not None:
            self.span.set_attribute(names.KV_PRECISION, kv.precision)
        if kv.preemptions:
            self.span.set_attribute(names.KV_PREEMPTIONS, kv.preemptions)
            self.span.set_attribute(names.KV_SWITCHES, kv.switches)
            self.span.set_attribute(names.KV_RECOMPUTED_TOKENS, kv.recomputed_tokens)
        if reply.experts is not None and reply.experts.tokens:
            self.span.set_attributes(expert_attributes(reply.experts))
        if reply.pools is not None:
            self._pools(reply.pools)
        self.span.set_attribute(names.USAGE_INPUT_TOKENS, usage.prompt_tokens)
        self.span.set_attribute(names.USAGE_OUTPUT_TOKENS, usage.completion_tokens)
        self.span.set_attribute(names.USAGE_CACHED_TOKENS, usage.cached_tokens)
        if usage.truncated_turns or usage.truncated_tokens:
            self.span.set_attribute(names.TRUNCATED_TURNS, usage.truncated_turns)
            self.span.set_attribute(names.TRUNCATED_TOKENS, usage.truncated_tokens)
        if reply.finish_reason is not None:
            self.span.set_attribute(names.FINISH_REASONS, (reply.finish_reason,))
        if reply.status >= 400:
            self.span.set_status(Status(StatusCode.ERROR, f"status {reply.status}"))

    def _pools(self, use: PoolUse) -> None:
        """What pools of experts did, each as a span from the first step that the request had part in to the last."""
        begun_ns = round(use.begun_s * 1e9)
        ended_ns = max(begun_ns, round(use.ended_s * 1e9))
        self.span.set_attributes(pools_attributes(use))
        if use.degraded_rows:
            told = {names.POOLS_DEGRADED_ROWS: use.degraded_rows}
            self.span.add_event(names.EVENT_EXPERTS_DEGRADED, told, timestamp=ended_ns)
        above = trace.set_span_in_context(self.span, Context())
        for part in heapq.nlargest(MAX_POOL_SPANS, use.parts, key=lambda part: part.pairs):
            attributes: dict[str, str | int | tuple[str, ...]] = {
                names.POOL: part.pool,
                names.POOL_PAIRS: part.pairs,
                names.POOL_REPLICAS: part.replicas,
            }
            self.tracer.start_span(names.SPAN_POOL, above, attributes=attributes, start_time=begun_ns).end(ended_ns)


class ReplicaTracer:
    """Makes spans for requests of one replica."""

    def __init__(self, model: str, engine: str) -> None:
        self._tracer = trace.get_tracer("pointsman.replica")
        self._attributes = {names.REQUEST_MODEL: model, names.ENGINE: engine}

    def changed(self, change: PrecisionChange) -> None:
        """A span of its own for a step on the precision ladder: it belongs to no request."""
        ended = time.time_ns()
        span = self._tracer.start_span(
            names.SPAN_PRECISION,
            context=Context(),
            attributes={**self._attributes, names.REPLICA: change.replica, **change_attributes(change)},
            start_time=ended - int(change.pause_s * 1e9),
        )
        if change.error is not None:
            span.set_status(Status(StatusCode.ERROR, change.error))
        span.end(ended)

    @contextmanager
    def request(self, request: EngineRequest, replica_id: str) -> Iterator[ReplicaSpan]:
        """Open the span of one request as a child of the ingress's."""
        parent = _propagator.extract(dict(request.trace_headers))
        with self._tracer.start_as_current_span(
            names.SPAN_REPLICA,
            context=parent,
            kind=SpanKind.SERVER,
            attributes={**self._attributes, names.REPLICA: replica_id, names.REQUEST_ID: request.request_id},
            # An exception's text may hold what a caller wrote; its type is enough.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            headers: dict[str, str] = {}
            _propagator.inject(headers)
            try:
                yield ReplicaSpan(span, headers, self._tracer)
            except Exception as error:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise


def expert_attributes(use: ExpertUse) -> dict[str, int | float | tuple[str, ...]]:
    """The experts of one request, for its span."""
    top = tuple(f"layer {layer} expert {expert} {share:.2f}" for layer, expert, share in use.top)
    return {
        names.EXPERT_TOKENS: use.tokens,
        names.EXPERT_DISTINCT: use.distinct,
        names.EXPERT_ENTROPY: round(use.entropy, 4),
        names.EXPERT_TOP: top,
    }


def pools_attributes(use: PoolUse) -> dict[str, int | float]:
    """What pools of experts did for one request, for its span."""
    told: dict[str, int | float] = {
        names.POOLS_STEPS: use.steps,
        names.POOLS_WAIT: use.wait_s,
        names.POOLS_RESENT_ROWS: use.resent_rows,
        names.POOLS_DEGRADED_ROWS: use.degraded_rows,
    }
    if len(use.parts) > MAX_POOL_SPANS:
        told[names.POOLS_NOT_SHOWN] = len(use.parts) - MAX_POOL_SPANS
    return told


def change_attributes(change: PrecisionChange) -> dict[str, str | int | float]:
    """A step on the precision ladder, for spans and their events."""
    return {
        names.LEVEL: change.level,
        names.LEVEL_NAME: change.level_name,
        names.LEVEL_BEFORE: change.level_before,
        names.LEVEL_CAUSE: change.cause,
        names.LEVEL_REASON: change.reason,
        names.KV_PRECISION_BEFORE: change.kv_before,
        names.KV_PRECISION: change.kv_after,
        names.KV_PAUSE: change.pause_s,
        names.KV_PREEMPTED: change.preempted,
        names.KV_RECOMPUTED_TOKENS: change.tokens,
        names.KV_POOL_BLOCKS: change.blocks_after,
    }
