"""The life of one request for an engine: parse, route, admit, dispatch, answer, account."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from http import HTTPStatus

from cluster.admission.asking import Asking
from cluster.api.chat import parse_chat
from cluster.api.completion import parse_completion
from cluster.api.embedding import EmbeddingRequest, parse_embedding
from cluster.api.json_body import JsonObject, parse_json
from cluster.api.requests import ApiRequest
from cluster.config.ingress import LimitsConfig
from cluster.keys import KeyRecord
from cluster.routing.decision import RouteDecision
from deployments.channel.stream import ReplicaLostError, SlowReaderError
from deployments.engines.protocol import Endpoint, EngineReply, TokenUsage
from deployments.ingress import failures
from deployments.ingress.account import Account
from deployments.ingress.body import BodyReader
from deployments.ingress.choosing import Choosing, tokens_at_most
from deployments.ingress.course import Course, dispatch, engine_request, fall_back
from deployments.ingress.dispatch import Answer, NoReplicaError, QueueFullError
from deployments.ingress.exchange import Exchange
from deployments.ingress.feedback import FeedbackLoop
from deployments.ingress.noting import Note
from deployments.ingress.provenance import Provenance
from deployments.ingress.sending import StreamSender, break_off, send_whole
from deployments.ingress.services import Services
from deployments.ingress.tracing import RequestSpan
from deployments.ingress.two_stage import TwoStage
from deployments.ingress.verification import Verification
from deployments.telemetry.metrics import StreamTimer

_PARSERS: Mapping[Endpoint, Callable[[JsonObject, LimitsConfig], ApiRequest]] = {
    Endpoint.CHAT: parse_chat,
    Endpoint.COMPLETION: parse_completion,
    Endpoint.EMBEDDING: parse_embedding,
}


class Generation:
    """Serves one endpoint."""

    def __init__(self, services: Services, endpoint: Endpoint, bodies: BodyReader) -> None:
        self._services = services
        self._endpoint = endpoint
        self._bodies = bodies
        self._choosing = Choosing(services)
        verification = Verification(services)
        self._feedback = FeedbackLoop(services, endpoint, verification, self._choosing.bind, self._note_decision)
        self._two_stage = TwoStage(services, endpoint, self._feedback, verification, self._choosing)

    async def serve(self, exchange: Exchange, key: KeyRecord | None, span: RequestSpan) -> None:
        """Serve one request. Raises `ApiError` as long as nothing was sent; whatever comes later ends the stream."""
        with Note(self._services, self._endpoint, key, span) as note:
            await self._serve(exchange, key, span, note)

    async def _serve(self, exchange: Exchange, key: KeyRecord | None, span: RequestSpan, note: Note) -> None:
        services = self._services
        limits = services.config.ingress.limits
        timer = StreamTimer(time.monotonic())
        with services.gate.reading(key):
            request = await self._read(exchange, limits)
        chosen = await self._choosing.first(request)
        services.metrics.decided(chosen.decision.model, chosen.decision.reason_code)
        self._compare(request, chosen.decision)
        decision = note.decided(request, chosen.decision, timer)
        bound = self._choosing.bind(request, decision)
        note.course = course = Course(request, *bound, account=Account(services.config))
        course.intent = chosen.signals.intent.value
        course.tenant = "" if key is None else key.tenant
        span.decided(course.decision, course.contract, course.request)
        self._count_changes(course)
        async with services.gate.admit(key, tokens_at_most(course.request)) as admission:
            exchange.headers |= admission.headers
            # The client's disconnect cancels this task wherever it waits, and with it all that the request holds.
            task = asyncio.current_task()
            gone = asyncio.get_running_loop().create_task(exchange.gone())
            gone.add_done_callback(lambda done: None if done.cancelled() or task is None else task.cancel())
            reply = EngineReply(status=failures.CLIENT_GONE)
            limit_s, model, admitted = course.contract.timeout_s, course.decision.model, False
            course.deadline_s = asyncio.get_running_loop().time() + limit_s
            try:
                async with (
                    asyncio.timeout_at(course.deadline_s),
                    services.admission.enter(model, _asking(course, limit_s)),
                ):
                    admitted = True
                    reply = await self._answer(exchange, course, timer, span)
            except TimeoutError as error:
                if not admitted:
                    raise failures.waited(model, limit_s, services.admission.retry_after_s(model)) from None
                if exchange.status == 0:
                    raise failures.too_long(limit_s) from None
                reply = await break_off(exchange, span, error)
            finally:
                gone.cancel()
                course.close()
                services.experts.ended(course.account.calls)
                span.answered(course.attempts, timer)
                span.chosen(course.answer)
                admission.spent(_usage(reply, course))
            if reply.status >= HTTPStatus.BAD_REQUEST:
                services.gate.refused(key)
            note.reply = reply
            span.finished(reply)
            self._count(course, reply, timer, span)

    async def _answer(self, exchange: Exchange, course: Course, timer: StreamTimer, span: RequestSpan) -> EngineReply:
        """Have the request answered; one that is not judged by the first model that is not lost before its first byte."""
        if course.knobs.two_stage:
            return await self._two_stage.answer(exchange, course, timer, span)
        if self._feedback.wanted(course):
            return await self._feedback.answer(exchange, course, timer, span)
        config = self._services.config
        send = self._stream if course.streams else self._plain
        while True:
            request = engine_request(course, self._endpoint, span.request_id, span.trace_headers)
            answer = dispatch(self._services, course, request)
            provenance = Provenance(course.decision, span.trace_id, course.earlier, account=course.account)
            try:
                return await send(exchange, answer, provenance, timer, span)
            except (NoReplicaError, ReplicaLostError) as error:
                if not fall_back(course, self._choosing.bind):
                    raise failures.to_api_error(error, config) from error
                self._note_decision(course, span)
            except (QueueFullError, SlowReaderError) as error:
                raise failures.to_api_error(error, config) from error

    def _note_decision(self, course: Course, span: RequestSpan) -> None:
        """A later decision: another model takes over."""
        span.decided(course.decision, course.contract, course.request)
        self._services.metrics.decided(course.decision.model, course.decision.reason_code)
        self._count_changes(course)

    def _compare(self, request: ApiRequest, decision: RouteDecision) -> None:
        """Count a request that was routed if it was asked before: does it go where it went?"""
        if decision.role is None or isinstance(request, EmbeddingRequest):
            return
        steady = self._services.recent.steadiness.asked(request.model, request.text, decision.model)
        if steady is not None:
            self._services.metrics.repeated(steady=steady)

    def _count_changes(self, course: Course) -> None:
        level = course.decision.level
        if level is not None and level.changes:
            self._services.metrics.sampling_changed(course.decision.model, level.name)

    def _count(self, course: Course, reply: EngineReply, timer: StreamTimer, span: RequestSpan) -> None:
        metrics, contract, model = self._services.metrics, course.contract, (course.sent or course.decision).model
        metrics.answered(model, self._endpoint, reply, timer, time.monotonic(), span.kept_trace_id)
        self._services.pools.answered(model, reply)
        if timer.first_s is not None:
            self._services.recent.began(model, timer.first_s)
        target = contract.latency_target_s
        if target is not None and timer.first_s is not None and timer.first_s > target:
            metrics.late(model, contract.role or model)
        if course.lost or course.attempts > course.begun:
            metrics.retried(model)

    async def _read(self, exchange: Exchange, limits: LimitsConfig) -> ApiRequest:
        parser = _PARSERS[self._endpoint]

        def parse(body: bytes) -> ApiRequest:
            exchange.body_read = True
            return parser(parse_json(body, limits), limits)

        return await self._bodies.read(exchange.scope, exchange.receive, parse)

    async def _plain(
        self, exchange: Exchange, answer: Answer, provenance: Provenance, timer: StreamTimer, span: RequestSpan
    ) -> EngineReply:
        while (data := await answer.next()) is not None:
            timer.chunk(time.monotonic(), data.count(b"\n\n"))
        return await send_whole(exchange, answer, failures.require_reply(answer.reply), provenance, span)

    async def _stream(
        self, exchange: Exchange, answer: Answer, provenance: Provenance, timer: StreamTimer, span: RequestSpan
    ) -> EngineReply:
        sender = StreamSender(exchange, provenance, timer, span)
        first = await answer.next()
        if first is None:
            return await sender.refuse(answer, failures.require_reply(answer.reply))
        return await sender.send(answer, first)


def _asking(course: Course, limit_s: float) -> Asking:
    """What a request asks of its model. Attempts with other models keep the place that it got here."""
    return Asking(course.tenant, course.knobs.latency_class, tokens_at_most(course.request), limit_s)


def _usage(reply: EngineReply, course: Course) -> TokenUsage:
    """What a request used, attempts that were left and checks included.

    One that broke off is charged what was estimated of its prompt, and what came of its answer. Nothing comes of a whole
    answer before its end, though it is made all the same: so that leaving is no way around a limit, one that a replica had
    taken is charged as much as it asked for.
    """
    answer, spent = course.answer, course.spent
    usage = reply.usage
    unfinished = reply.status in (failures.CLIENT_GONE, failures.STREAM_BROKEN)
    if unfinished and answer is not None and answer.reply is not None:
        usage = answer.reply.usage
    elif unfinished and answer is not None and answer.replica_id is not None and usage == TokenUsage():
        prompt = course.request.prompt_tokens_estimate
        made = answer.events if course.streams else tokens_at_most(course.request) - prompt
        usage = TokenUsage(prompt_tokens=prompt, completion_tokens=made)
    return replace(
        usage,
        prompt_tokens=usage.prompt_tokens + spent.prompt_tokens,
        completion_tokens=usage.completion_tokens + spent.completion_tokens,
    )
