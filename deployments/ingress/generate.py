"""The life of one request for an engine: parse, route, admit, dispatch, answer, account."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from cluster.api.chat import parse_chat
from cluster.api.completion import parse_completion
from cluster.api.embedding import EmbeddingRequest, parse_embedding
from cluster.api.errors import ApiError
from cluster.api.json_body import JsonObject, parse_json
from cluster.api.requests import ApiRequest
from cluster.config.ingress import LimitsConfig
from cluster.contracts import Contract, contract_for, enforce
from cluster.keys import KeyRecord
from cluster.routing.decision import RouteDecision
from cluster.routing.knob_bounds import check_knobs
from cluster.routing.signals import signals_of
from deployments.channel.stream import ReplicaLostError, SlowReaderError
from deployments.engines.protocol import Endpoint, EngineReply, EngineRequest, TokenUsage
from deployments.ingress import failures
from deployments.ingress.body import BodyReader
from deployments.ingress.dispatch import Answer, NoReplicaError, QueueFullError
from deployments.ingress.exchange import Exchange
from deployments.ingress.provenance import Provenance
from deployments.ingress.services import Services
from deployments.ingress.tracing import RequestSpan
from deployments.telemetry.metrics import StreamTimer

_DONE = b"data: [DONE]\n\n"
_PARSERS: Mapping[Endpoint, Callable[[JsonObject, LimitsConfig], ApiRequest]] = {
    Endpoint.CHAT: parse_chat,
    Endpoint.COMPLETION: parse_completion,
    Endpoint.EMBEDDING: parse_embedding,
}


@dataclass(slots=True)
class _Course:
    """Where one request is on its way: the model that works on it, and what it was asked for in the first place."""

    asked: ApiRequest
    decision: RouteDecision
    contract: Contract
    request: ApiRequest
    """What was asked for, within the contract."""
    answer: Answer | None = None
    earlier: int = 0
    """Attempts on models that were lost."""

    @property
    def attempts(self) -> int:
        """Attempts in all."""
        return self.earlier + (0 if self.answer is None else self.answer.attempts)

    def turn_to(self, decision: RouteDecision, contract: Contract, request: ApiRequest) -> None:
        """Leave the model that was lost for another."""
        self.close()
        self.earlier, self.answer = self.attempts, None
        self.decision, self.contract, self.request = decision, contract, request

    def close(self) -> None:
        """Free what the model at work holds."""
        if self.answer is not None:
            self.answer.close()


class Generation:
    """Serves one endpoint."""

    def __init__(self, services: Services, endpoint: Endpoint, bodies: BodyReader) -> None:
        self._services = services
        self._endpoint = endpoint
        self._bodies = bodies

    async def serve(self, exchange: Exchange, key: KeyRecord | None, span: RequestSpan) -> None:
        """Serve one request. Raises `ApiError` as long as nothing was sent; whatever comes later ends the stream."""
        services = self._services
        limits = services.config.ingress.limits
        timer = StreamTimer(time.monotonic())
        with services.gate.reading(key):
            request = await self._read(exchange, limits)
        course = _Course(request, *self._bind(request, self._decide(request)))
        tenant = "" if key is None else key.tenant
        self._note_decision(course, span)
        async with services.gate.admit(key, _tokens_at_most(course.request)) as admission:
            exchange.headers |= admission.headers
            # The client's disconnect cancels this task wherever it waits, and with it all that the request holds.
            task = asyncio.current_task()
            gone = asyncio.get_running_loop().create_task(exchange.gone())
            gone.add_done_callback(lambda done: None if done.cancelled() or task is None else task.cancel())
            reply = EngineReply(status=failures.CLIENT_GONE)
            limit_s = course.contract.timeout_s
            try:
                async with asyncio.timeout(limit_s):
                    reply = await self._answer(exchange, course, timer, span, tenant)
            except TimeoutError as error:
                if exchange.status == 0:
                    raise failures.too_long(limit_s) from None
                reply = await self._break_off(exchange, span, error)
            finally:
                gone.cancel()
                course.close()
                span.answered(course.attempts, timer)
                admission.spent(_usage(reply, course))
            if reply.status >= HTTPStatus.BAD_REQUEST:
                services.gate.refused(key)
            span.finished(reply)
            self._count(course, reply, timer)

    async def _answer(
        self, exchange: Exchange, course: _Course, timer: StreamTimer, span: RequestSpan, tenant: str
    ) -> EngineReply:
        """Have the request answered, if its model is lost before the first byte by the next that stands in for it."""
        config = self._services.config
        send = self._stream if getattr(course.request, "stream", False) else self._plain
        while True:
            answer = self._dispatch(course, span, tenant)
            provenance = Provenance(course.decision, span.trace_id, course.earlier)
            try:
                return await send(exchange, answer, provenance, timer, span)
            except (NoReplicaError, ReplicaLostError) as error:
                if not self._fall_back(course):
                    raise failures.to_api_error(error, config) from error
                self._note_decision(course, span)
            except (QueueFullError, SlowReaderError) as error:
                raise failures.to_api_error(error, config) from error

    def _dispatch(self, course: _Course, span: RequestSpan, tenant: str) -> Answer:
        model = course.decision.model
        request = EngineRequest(
            request_id=span.request_id,
            endpoint=self._endpoint,
            body={**course.request.body, "model": model},
            trace_headers=span.trace_headers,
            tenant=tenant,
            max_prompt_tokens=course.contract.max_prompt_tokens,
        )
        limits = self._services.config.ingress.limits
        course.answer = self._services.clients[model].answer(request, limits.max_buffered_bytes_per_stream)
        return course.answer

    def _fall_back(self, course: _Course) -> bool:
        """Set the course on the next model that takes over and can keep the contract; whether there is one."""
        decision = course.decision.after_loss()
        while decision is not None:
            try:
                bound = self._bind(course.asked, decision)
            except ApiError:
                # It holds less than was asked for. That this is so is not the caller's mistake: on to the next.
                decision = decision.after_loss()
                continue
            course.turn_to(*bound)
            return True
        return False

    def _note_decision(self, course: _Course, span: RequestSpan) -> None:
        span.decided(course.decision, course.contract, course.request)
        self._services.metrics.decided(course.decision.model, course.decision.reason_code)

    def _count(self, course: _Course, reply: EngineReply, timer: StreamTimer) -> None:
        metrics, contract, model = self._services.metrics, course.contract, course.decision.model
        metrics.answered(model, self._endpoint, reply, timer, time.monotonic())
        if timer.first_s is not None:
            self._services.recent.began(model, timer.first_s)
        target = contract.latency_target_s
        if target is not None and timer.first_s is not None and timer.first_s > target:
            metrics.late(model, contract.role or model)
        if course.attempts > 1:
            metrics.retried(model)

    async def _read(self, exchange: Exchange, limits: LimitsConfig) -> ApiRequest:
        parser = _PARSERS[self._endpoint]

        def parse(body: bytes) -> ApiRequest:
            exchange.body_read = True
            return parser(parse_json(body, limits), limits)

        return await self._bodies.read(exchange.scope, exchange.receive, parse)

    def _decide(self, request: ApiRequest) -> RouteDecision:
        services = self._services
        check_knobs(services.config.routing.knobs, request)
        return services.policy.decide(request.model, signals_of(request), services.health.models())

    def _bind(self, request: ApiRequest, decision: RouteDecision) -> tuple[RouteDecision, Contract, ApiRequest]:
        contract = contract_for(self._services.config, decision)
        return decision, contract, enforce(contract, request)

    async def _plain(
        self, exchange: Exchange, answer: Answer, provenance: Provenance, timer: StreamTimer, span: RequestSpan
    ) -> EngineReply:
        while (data := await answer.next()) is not None:
            timer.chunk(time.monotonic(), data.count(b"\n\n"))
        reply = failures.require_reply(answer.reply)
        if reply.status == 200:
            span.said(reply.body)
        exchange.headers |= provenance.headers(answer, reply)
        body = reply.body if reply.status != 200 else provenance.add_to(reply.body, answer, reply)
        await exchange.respond(reply.status, body, headers=failures.retry_headers(reply))
        return reply

    async def _stream(
        self, exchange: Exchange, answer: Answer, provenance: Provenance, timer: StreamTimer, span: RequestSpan
    ) -> EngineReply:
        first = await answer.next()
        if first is None:
            # Refused before its first event: an ordinary error answer, not a stream.
            reply = failures.require_reply(answer.reply)
            exchange.headers |= provenance.headers(answer, reply)
            await exchange.respond(reply.status, reply.body, headers=failures.retry_headers(reply))
            return reply
        exchange.headers |= provenance.headers(answer, None)
        await exchange.begin_stream()
        data: bytes | None = first
        try:
            while data is not None:
                timer.chunk(time.monotonic(), data.count(b"\n\n"))
                span.said(data)
                await exchange.write(data)
                data = await answer.next()
            reply = failures.require_reply(answer.reply)
        except (ReplicaLostError, SlowReaderError) as error:
            return await self._break_off(exchange, span, error)
        ending = provenance.comment(answer, reply)
        if reply.status == 200:
            ending += _DONE
        elif reply.body:
            ending = failures.error_event(reply.body) + ending
        await exchange.write(ending, last=True)
        return reply

    async def _break_off(self, exchange: Exchange, span: RequestSpan, error: Exception) -> EngineReply:
        """End a stream whose head is out with an error event, and without `[DONE]`."""
        span.failed(error)
        await exchange.write(failures.stream_error(error), last=True)
        return EngineReply(status=failures.STREAM_BROKEN)


def _tokens_at_most(request: ApiRequest) -> int:
    """What a request may use, to be held against its key's limit until it is known: prompt and completion."""
    if isinstance(request, EmbeddingRequest):
        return request.prompt_tokens_estimate
    return request.prompt_tokens_estimate + (request.max_tokens or 0) * request.sequences


def _usage(reply: EngineReply, course: _Course) -> TokenUsage:
    """What a request used. One that broke off is charged what was estimated of its prompt, and what came of its answer.

    Nothing comes of a whole answer before its end, though it is made all the same: so that leaving is no way around a
    limit, one that a replica had taken is charged as much as it asked for.
    """
    answer = course.answer
    unfinished = reply.status in (failures.CLIENT_GONE, failures.STREAM_BROKEN)
    if not unfinished or answer is None or answer.replica_id is None or reply.usage != TokenUsage():
        return reply.usage
    prompt = course.request.prompt_tokens_estimate
    streamed = getattr(course.request, "stream", False)
    made = answer.events if streamed else _tokens_at_most(course.request) - prompt
    return TokenUsage(prompt_tokens=prompt, completion_tokens=made)
