"""The ingress's span of one request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_trace_id

from cluster.telemetry import names
from deployments.engines.protocol import Endpoint, EngineReply
from deployments.telemetry.content import OutputRecorder, input_messages
from deployments.telemetry.propagation import incoming_context, outgoing_headers
from deployments.telemetry.setup import Telemetry

if TYPE_CHECKING:
    from cluster.api.errors import ApiError
    from cluster.api.requests import ApiRequest
    from cluster.contracts import Contract
    from cluster.keys import KeyRecord
    from cluster.routing.decision import RouteDecision
    from cluster.verification.verdict import Verdict
    from deployments.ingress.dispatch import Answer
    from deployments.telemetry.metrics import StreamTimer

OPERATIONS: Mapping[Endpoint, str] = {
    Endpoint.CHAT: names.OPERATION_CHAT,
    Endpoint.COMPLETION: names.OPERATION_COMPLETION,
    Endpoint.EMBEDDING: names.OPERATION_EMBEDDING,
}


class RequestSpan:
    """One request's span in the ingress, and the events on it."""

    def __init__(self, span: Span, request_id: str, telemetry: Telemetry, operation: str) -> None:
        self._span = span
        self._telemetry = telemetry
        self._operation = operation
        self._output = OutputRecorder() if telemetry.captures_content else None
        self.request_id = request_id
        context = span.get_span_context()
        # With OTEL_SDK_DISABLED there are no traces; an id is still what callers and logs name a request by.
        self.trace_id = format_trace_id(
            context.trace_id if context.is_valid else RandomIdGenerator().generate_trace_id()
        )
        self.trace_headers = outgoing_headers(span)
        self.kept_trace_id = self.trace_id if context.is_valid and context.trace_flags.sampled else None
        """The same, where the trace is recorded: what a metric may point to."""

    def caller(self, key: KeyRecord) -> None:
        """Whose request it is: the public part of the key, never the key."""
        self._span.set_attribute(names.KEY_ID, key.id)
        self._span.set_attribute(names.TENANT, key.tenant)

    def decided(self, decision: RouteDecision, contract: Contract, request: ApiRequest) -> None:
        """The routing decision, as a child span: it has its own place in the tree."""
        # Known by now to be a model's or a role's name, or `auto`: a caller's own words do not get this far.
        self._span.update_name(f"{self._operation} {request.model}")
        self._span.set_attributes(_request_attributes(request))
        if self._output is not None and (said := input_messages(request.body)) is not None:
            self._span.set_attribute(names.INPUT_MESSAGES, said)
        with self._telemetry.tracer.start_as_current_span(
            names.SPAN_ROUTE,
            attributes={
                names.ROUTE_MODEL: decision.model,
                names.ROUTE_REASON: decision.reason,
                names.ROUTE_RULE: decision.reason_code,
                names.ROUTE_CANDIDATES: decision.candidates,
                names.ROUTE_SCORES: tuple(candidate.score or 0.0 for candidate in decision.considered),
                names.PROMPT_TOKENS_ESTIMATE: request.prompt_tokens_estimate,
            },
        ):
            self._span.set_attribute(names.RESPONSE_MODEL, decision.model)
            if contract.latency_target_s is not None:
                self._span.set_attribute(names.LATENCY_TARGET, contract.latency_target_s)
            if decision.role is not None:
                self._span.set_attribute(names.ROUTE_ROLE, decision.role)
            level = decision.level
            if level is not None and level.level:
                self._span.set_attribute(names.LEVEL, level.level)
                self._span.set_attribute(names.LEVEL_NAME, level.name)
                if level.changes:
                    self._span.set_attribute(names.LEVEL_CHANGED, level.changed())

    @contextmanager
    def attempt(self, number: int, model: str, temperature: float | None) -> Iterator[AttemptSpan]:
        """One attempt at a request whose answers are judged, as a child span that its engine's span is a child of."""
        attributes: dict[str, str | int | float] = {names.ATTEMPT_NUMBER: number, names.ROUTE_MODEL: model}
        if temperature is not None:
            attributes[names.REQUEST_TEMPERATURE] = temperature
        with self._child(names.SPAN_ATTEMPT, attributes) as span:
            yield AttemptSpan(span)

    @contextmanager
    def verifying(self) -> Iterator[AttemptSpan]:
        """The checks on one answer, as a child of what is under way."""
        with self._child(names.SPAN_VERIFY, {}) as span:
            yield AttemptSpan(span)

    @contextmanager
    def _child(self, name: str, attributes: Mapping[str, str | int | float]) -> Iterator[Span]:
        with self._telemetry.tracer.start_as_current_span(
            name, attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except BaseException as error:
                span.set_attribute(names.ERROR_TYPE, type(error).__name__)
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise

    def said(self, data: bytes) -> None:
        """A piece of the answer, as it goes to the client; kept only if the operator asked for it."""
        if self._output is not None:
            self._output.add(data)

    def answered(self, attempts: int, timer: StreamTimer) -> None:
        """Attempts and the time to the first piece of the answer."""
        self._span.set_attribute(names.ATTEMPTS, attempts)
        if timer.first_s is not None:
            self._span.set_attribute(names.TTFT, timer.first_s)
        if self._output is not None and (said := self._output.messages()) is not None:
            self._span.set_attribute(names.OUTPUT_MESSAGES, said)

    def chosen(self, answer: Answer | None) -> None:
        """The replica, and why that one."""
        if answer is None or answer.replica_id is None:
            return
        self._span.set_attribute(names.ROUTE_REPLICA, answer.replica_id)
        if (reason := answer.replica_reason) is not None:
            self._span.set_attribute(names.ROUTE_REPLICA_REASON, reason)

    def finished(self, reply: EngineReply) -> None:
        """How the engine ended it."""
        self._span.set_attribute(names.USAGE_INPUT_TOKENS, reply.usage.prompt_tokens)
        self._span.set_attribute(names.USAGE_OUTPUT_TOKENS, reply.usage.completion_tokens)
        if reply.usage.cached_tokens:
            self._span.set_attribute(names.USAGE_CACHED_TOKENS, reply.usage.cached_tokens)
        if reply.finish_reason is not None:
            self._span.set_attribute(names.FINISH_REASONS, (reply.finish_reason,))
        self._status(reply.status, str(reply.status))

    def refused(self, error: ApiError) -> None:
        """The answer is an error of the ingress's own."""
        self._status(error.status, error.code)

    def _status(self, status: int, error_type: str) -> None:
        """The HTTP status; 5xx marks the span as failed."""
        self._span.set_attribute(names.HTTP_STATUS, status)
        if status >= 400:
            self._span.set_attribute(names.ERROR_TYPE, error_type)
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR, f"status {status}"))

    def failed(self, error: BaseException) -> None:
        """What went wrong, by type: messages may hold what a user sent."""
        self._span.set_attribute(names.ERROR_TYPE, type(error).__name__)
        self._span.set_status(Status(StatusCode.ERROR, type(error).__name__))


class AttemptSpan:
    """The span of one attempt, or of the checks on its answer."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self.trace_headers = outgoing_headers(span)

    def confident(self, confidence: float | None) -> None:
        """How sure the model was, 0 to 1; None: not known."""
        if confidence is not None:
            self._span.set_attribute(names.CONFIDENCE, confidence)

    def verdict(self, verdict: Verdict | None) -> None:
        """What the checks said; None: nothing was checked."""
        if verdict is None:
            return
        self._span.set_attribute(names.VERDICT_OK, verdict.ok)
        self._span.set_attribute(names.VERDICT_NAME, verdict.name)
        if verdict.score is not None:
            self._span.set_attribute(names.VERDICT_SCORE, verdict.score)

    def outcome(self, outcome: str, reason: str) -> None:
        """What follows, and why."""
        self._span.set_attribute(names.ATTEMPT_OUTCOME, outcome)
        self._span.set_attribute(names.ATTEMPT_REASON, reason)


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
        attributes={
            names.OPERATION: OPERATIONS[endpoint],
            names.PROVIDER: names.PROVIDER_POINTSMAN,
            names.REQUEST_ID: request_id,
        },
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield RequestSpan(span, request_id, telemetry, OPERATIONS[endpoint])


def _request_attributes(request: ApiRequest) -> dict[str, str | int | float | bool]:
    """What was asked for, numbers and the model's name."""
    attributes: dict[str, str | int | float | bool] = {names.REQUEST_MODEL: request.model}
    for name, value in (
        (names.REQUEST_STREAM, getattr(request, "stream", None) or None),
        (names.REQUEST_MAX_TOKENS, getattr(request, "max_tokens", None)),
        (names.REQUEST_TEMPERATURE, getattr(request, "temperature", None)),
        (names.REQUEST_SEED, getattr(request, "seed", None)),
        (names.REQUEST_CHOICES, choices if (choices := getattr(request, "n", 1)) != 1 else None),
        (names.REQUEST_TOP_P, request.body.get("top_p")),
    ):
        if isinstance(value, bool | int | float):
            attributes[name] = value
    return attributes
