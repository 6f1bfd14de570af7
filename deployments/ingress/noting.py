"""Writes a request down once it has ended, from its decision on, however it ended."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from cluster.api.errors import ApiError
from cluster.records.record import DecisionRecord
from deployments.ingress import failures
from deployments.ingress.body import ClientGoneError

if TYPE_CHECKING:
    from cluster.api.requests import ApiRequest
    from cluster.keys import KeyRecord
    from cluster.routing.decision import RouteDecision
    from deployments.engines.protocol import Endpoint, EngineReply
    from deployments.ingress.course import Course
    from deployments.ingress.services import Services
    from deployments.ingress.tracing import RequestSpan
    from deployments.telemetry.metrics import StreamTimer

_log = logging.getLogger(__name__)

_ENDS: Final = {failures.CLIENT_GONE: "client_gone", failures.STREAM_BROKEN: "stream_broken"}


class Note:
    """What is known of one request; `with` it the request runs. Without a decision nothing is written."""

    def __init__(self, services: Services, endpoint: Endpoint, key: KeyRecord | None, span: RequestSpan) -> None:
        self._services = services
        self._endpoint = endpoint
        self._key = key
        self._span = span
        self._at = time.time()
        self._began = time.monotonic()
        self._asked: ApiRequest | None = None
        self._decision: RouteDecision | None = None
        self._timer: StreamTimer | None = None
        self.course: Course | None = None
        self.reply: EngineReply | None = None

    def decided(self, request: ApiRequest, decision: RouteDecision, timer: StreamTimer) -> RouteDecision:
        """The first decision: from now on there is something to write. Returns it."""
        self._asked, self._decision, self._timer = request, decision, timer
        return decision

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if self._asked is None or self._decision is None:
            return
        try:
            record = self._record(self._asked, self._decision, error)
        except Exception:  # noqa: BLE001 - whatever it was
            # A request must not fail for what is written of it; that it is missing is counted.
            _log.exception("a record could not be made")
            self._services.records.failed()
        else:
            self._services.records.note(record)

    def _record(self, asked: ApiRequest, decision: RouteDecision, error: BaseException | None) -> DecisionRecord:
        course, reply, key, span = self.course, self.reply, self._key, self._span
        status, code = _end(reply, error)
        judgement = None
        if course is not None:
            decision, judgement = course.sent or course.decision, course.judgement
        verdict = None if judgement is None else judgement.verdict
        return DecisionRecord(
            id=uuid.uuid4().hex,
            request_id=span.request_id,
            trace_id=span.trace_id,
            at=self._at,
            endpoint=self._endpoint.value,
            asked_model=asked.model,
            model=decision.model,
            role=decision.role,
            rule=decision.reason_code,
            reason=decision.reason,
            status=status,
            error=code,
            tenant="" if key is None else key.tenant,
            key_id=None if key is None else key.id,
            key_name=None if key is None else key.name,
            streamed=bool(getattr(asked, "stream", False)),
            attempts=0 if course is None else course.attempts,
            finish_reason=None if reply is None else reply.finish_reason,
            confidence=None if judgement is None else judgement.confidence,
            verified=None if verdict is None else verdict.ok,
            sampling=None if decision.sampling is None else decision.sampling.sampling.value,
            ttft_s=None if self._timer is None else self._timer.first_s,
            total_s=time.monotonic() - self._began,
            candidates=decision.considered,
            signals=decision.signals,
            trail=() if judgement is None else judgement.trail,
            precision=None if course is None else course.precision(decision.model),
            **({} if course is None else {"cost": course.account.cost()}),
        )


def _end(reply: EngineReply | None, error: BaseException | None) -> tuple[int, str | None]:
    """HTTP status and a code for how a request ended."""
    if reply is not None:
        code = _ENDS.get(reply.status)
        return reply.status, code or ("engine_refused" if reply.status >= 400 else None)
    if isinstance(error, ApiError):
        return error.status, error.code
    if isinstance(error, asyncio.CancelledError | ClientGoneError | ConnectionError):
        return failures.CLIENT_GONE, _ENDS[failures.CLIENT_GONE]
    return 500, "internal_error" if error is None else type(error).__name__
