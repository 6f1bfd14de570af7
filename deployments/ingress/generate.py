"""The life of one request for an engine: parse, route, admit, dispatch, answer, account."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from cluster.api.chat import parse_chat
from cluster.api.completion import parse_completion
from cluster.api.embedding import EmbeddingRequest, parse_embedding
from cluster.api.json_body import JsonObject, parse_json
from cluster.api.requests import ApiRequest
from cluster.config.ingress import LimitsConfig
from cluster.contracts import Contract, contract_for, enforce
from cluster.keys import KeyRecord
from cluster.routing.resolve import RouteDecision, resolve
from cluster.routing.signals import signals_of
from deployments.channel.stream import ReplicaLostError, SlowReaderError
from deployments.engines.protocol import Endpoint, EngineReply, EngineRequest, TokenUsage
from deployments.ingress import failures
from deployments.ingress.body import read_body
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


class Generation:
    """Serves one endpoint."""

    def __init__(self, services: Services, endpoint: Endpoint) -> None:
        self._services = services
        self._endpoint = endpoint

    async def serve(self, exchange: Exchange, key: KeyRecord | None, span: RequestSpan) -> None:
        """Serve one request. Raises `ApiError` as long as nothing was sent; whatever comes later ends the stream."""
        services = self._services
        limits = services.config.ingress.limits
        timer = StreamTimer(time.monotonic())
        body = await read_body(exchange.scope, exchange.receive, limits)
        exchange.body_read = True
        request: ApiRequest = _PARSERS[self._endpoint](parse_json(body, limits), limits)
        decision, contract, request = self._decide(request)
        span.decided(decision, contract, request)
        services.metrics.decided(decision.model, decision.reason_code)
        async with services.gate.admit(key, _tokens_at_most(request)) as admission:
            exchange.headers |= admission.headers
            provenance = Provenance(decision, span.trace_id)
            engine_request = EngineRequest(
                request_id=span.request_id,
                endpoint=self._endpoint,
                body={**request.body, "model": decision.model},
                trace_headers=span.trace_headers,
            )
            client = services.clients[decision.model]
            answer = client.answer(engine_request, limits.max_buffered_bytes_per_stream)
            # The client's disconnect cancels this task wherever it waits, and with it all that the request holds.
            task = asyncio.current_task()
            gone = asyncio.get_running_loop().create_task(exchange.gone())
            gone.add_done_callback(lambda done: None if done.cancelled() or task is None else task.cancel())
            reply = EngineReply(status=failures.CLIENT_GONE)
            try:
                async with asyncio.timeout(contract.timeout_s):
                    if getattr(request, "stream", False):
                        reply = await self._stream(exchange, answer, provenance, timer, span)
                    else:
                        reply = await self._plain(exchange, answer, provenance, timer)
            except TimeoutError as error:
                if exchange.status == 0:
                    raise failures.too_long(contract.timeout_s) from None
                reply = await self._break_off(exchange, span, error)
            finally:
                gone.cancel()
                answer.close()
                span.answered(answer, timer)
                admission.spent(_usage(reply, request, answer))
            span.finished(reply)
            services.metrics.answered(decision.model, self._endpoint, reply, timer, time.monotonic())
            target = contract.latency_target_s
            if target is not None and timer.first_s is not None and timer.first_s > target:
                services.metrics.late(decision.model, contract.role or decision.model)
            if answer.attempts > 1:
                services.metrics.retried(decision.model)

    def _decide(self, request: ApiRequest) -> tuple[RouteDecision, Contract, ApiRequest]:
        config = self._services.config
        decision = resolve(request.model, signals_of(request), config, self._services.health.models())
        contract = contract_for(config, decision)
        return decision, contract, enforce(contract, request)

    async def _plain(
        self, exchange: Exchange, answer: Answer, provenance: Provenance, timer: StreamTimer
    ) -> EngineReply:
        try:
            while (data := await answer.next()) is not None:
                timer.chunk(time.monotonic(), data.count(b"\n\n"))
        except (NoReplicaError, QueueFullError, ReplicaLostError, SlowReaderError) as error:
            raise failures.to_api_error(error, self._services.config) from error
        reply = failures.require_reply(answer.reply)
        exchange.headers |= provenance.headers(answer, reply)
        body = reply.body if reply.status != 200 else provenance.add_to(reply.body, answer, reply)
        await exchange.respond(reply.status, body)
        return reply

    async def _stream(
        self, exchange: Exchange, answer: Answer, provenance: Provenance, timer: StreamTimer, span: RequestSpan
    ) -> EngineReply:
        try:
            first = await answer.next()
        except (NoReplicaError, QueueFullError, ReplicaLostError, SlowReaderError) as error:
            raise failures.to_api_error(error, self._services.config) from error
        if first is None:
            # Refused before its first event: an ordinary error answer, not a stream.
            reply = failures.require_reply(answer.reply)
            exchange.headers |= provenance.headers(answer, reply)
            await exchange.respond(reply.status, reply.body)
            return reply
        exchange.headers |= provenance.headers(answer, None)
        await exchange.begin_stream()
        data: bytes | None = first
        try:
            while data is not None:
                timer.chunk(time.monotonic(), data.count(b"\n\n"))
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


def _usage(reply: EngineReply, request: ApiRequest, answer: Answer) -> TokenUsage:
    """What a request used. One that broke off is charged what was estimated of its prompt, and what came of its answer."""
    if reply.status < 400 or reply.usage != TokenUsage() or answer.events == 0:
        return reply.usage
    return TokenUsage(prompt_tokens=request.prompt_tokens_estimate, completion_tokens=answer.events)
