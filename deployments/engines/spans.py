"""The span of engines that make none of their own: one per request, after OpenTelemetry's GenAI conventions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from cluster.telemetry import names
from deployments.engines.protocol import Endpoint, EngineReply, EngineRequest
from deployments.telemetry.propagation import context_from

OPERATIONS: Mapping[Endpoint, str] = {
    Endpoint.CHAT: names.OPERATION_CHAT,
    Endpoint.COMPLETION: names.OPERATION_COMPLETION,
    Endpoint.EMBEDDING: names.OPERATION_EMBEDDING,
}
"""Values of `gen_ai.operation.name`."""


class EngineTracer:
    """Makes the spans of one engine. `model` is the name under which whoever computes knows it."""

    def __init__(self, kind: SpanKind, model: str, attributes: Mapping[str, str | int]) -> None:
        self._tracer = trace.get_tracer("pointsman.engine")
        self._kind = kind
        self._model = model
        self._attributes = {names.REQUEST_MODEL: model, **attributes}

    @contextmanager
    def request(self, request: EngineRequest) -> Iterator[Span]:
        """Open the span of one request, as a child of the replica's."""
        operation = OPERATIONS[request.endpoint]
        with self._tracer.start_as_current_span(
            f"{operation} {self._model}",
            context=context_from(request.trace_headers),
            kind=self._kind,
            attributes={**self._attributes, names.OPERATION: operation},
            # An exception's text can hold an upstream's address or a caller's words.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield span


def note_reply(span: Span, reply: EngineReply, error: str | None) -> None:
    """Put the outcome of a request on its span. `error` is a low-cardinality code, None for none."""
    usage = reply.usage
    span.set_attribute(names.USAGE_INPUT_TOKENS, usage.prompt_tokens)
    span.set_attribute(names.USAGE_OUTPUT_TOKENS, usage.completion_tokens)
    if usage.cached_tokens:
        span.set_attribute(names.USAGE_CACHED_TOKENS, usage.cached_tokens)
    if reply.finish_reason is not None:
        span.set_attribute(names.FINISH_REASONS, (reply.finish_reason,))
    if error is not None:
        span.set_attribute(names.ERROR_TYPE, error)
        span.set_status(Status(StatusCode.ERROR, f"status {reply.status}"))
