"""The replica's own span, between the ingress's and the engine's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cluster.telemetry import names
from deployments.engines.protocol import EngineReply, EngineRequest

_propagator = TraceContextTextMapPropagator()


@dataclass(frozen=True, slots=True)
class ReplicaSpan:
    """A running request's span. `trace_headers` make the engine's own span its child."""

    span: Span
    trace_headers: Mapping[str, str]

    def finished(self, reply: EngineReply) -> None:
        """Note how the request ended."""
        usage = reply.usage
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


class ReplicaTracer:
    """Makes spans for requests of one replica."""

    def __init__(self, model: str, engine: str) -> None:
        self._tracer = trace.get_tracer("pointsman.replica")
        self._attributes = {names.REQUEST_MODEL: model, names.ENGINE: engine}

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
                yield ReplicaSpan(span, headers)
            except Exception as error:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise
