"""The ingress's span of one request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_trace_id

from cluster.telemetry import names
from deployments.engines.protocol import Endpoint, EngineReply
from deployments.telemetry.propagation import incoming_context, outgoing_headers
from deployments.telemetry.setup import Telemetry

if TYPE_CHECKING:
    from cluster.api.requests import ApiRequest
    from cluster.contracts import Contract
    from cluster.routing.resolve import RouteDecision
    from deployments.telemetry.metrics import StreamTimer

OPERATIONS: Mapping[Endpoint, str] = {
    Endpoint.CHAT: names.OPERATION_CHAT,
    Endpoint.COMPLETION: names.OPERATION_COMPLETION,
    Endpoint.EMBEDDING: names.OPERATION_EMBEDDING,
}


class RequestSpan:
    """One request's span in the ingress, and the events on it."""

    def __init__(self, span: Span, request_id: str, telemetry: Telemetry) -> None:
        self._span = span
        self._telemetry = telemetry
        self.request_id = request_id
        self.trace_id = format_trace_id(span.get_span_context().trace_id)
        self.trace_headers = outgoing_headers(span)

    def decided(self, decision: RouteDecision, contract: Contract, request: ApiRequest) -> None:
        """The routing decision, as a child span: it has its own place in the tree."""
        with self._telemetry.tracer.start_as_current_span(
            names.SPAN_ROUTE,
            attributes={
                names.ROUTE_MODEL: decision.model,
                names.ROUTE_REASON: decision.reason,
                names.ROUTE_CANDIDATES: decision.candidates,
                names.PROMPT_TOKENS_ESTIMATE: request.prompt_tokens_estimate,
            },
        ):
            self._span.set_attribute(names.REQUEST_MODEL, decision.model)
            if contract.latency_target_s is not None:
                self._span.set_attribute(names.LATENCY_TARGET, contract.latency_target_s)
            if decision.role is not None:
                self._span.set_attribute(names.ROUTE_ROLE, decision.role)

    def answered(self, attempts: int, timer: StreamTimer) -> None:
        """Attempts and the time to the first piece of the answer."""
        self._span.set_attribute(names.ATTEMPTS, attempts)
        if timer.first_s is not None:
            self._span.set_attribute(names.TTFT, timer.first_s)

    def finished(self, reply: EngineReply) -> None:
        """How the engine ended it."""
        self._span.set_attribute(names.USAGE_INPUT_TOKENS, reply.usage.prompt_tokens)
        self._span.set_attribute(names.USAGE_OUTPUT_TOKENS, reply.usage.completion_tokens)
        self.status(reply.status)

    def status(self, status: int) -> None:
        """The HTTP status; 5xx marks the span as failed."""
        self._span.set_attribute(names.HTTP_STATUS, status)
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR, f"status {status}"))

    def failed(self, error: BaseException) -> None:
        """What went wrong, by type: messages may hold what a user sent."""
        self._span.set_attribute(names.ERROR_TYPE, type(error).__name__)
        self._span.set_status(Status(StatusCode.ERROR, type(error).__name__))


@contextmanager
def request_span(
    telemetry: Telemetry, headers: list[tuple[bytes, bytes]], trusted: bool, endpoint: Endpoint, request_id: str
) -> Iterator[RequestSpan]:
    """Open the span of a request, under the caller's own where the caller is trusted."""
    incoming = incoming_context(headers, trusted=trusted)
    with telemetry.tracer.start_as_current_span(
        OPERATIONS[endpoint],
        context=incoming.context,
        links=incoming.links,
        kind=SpanKind.SERVER,
        attributes={names.OPERATION: OPERATIONS[endpoint], names.REQUEST_ID: request_id},
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield RequestSpan(span, request_id, telemetry)
