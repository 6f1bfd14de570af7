"""Sends answers to the client: whole ones, streams, and streams that break."""

from __future__ import annotations

import time

from deployments.channel.stream import ReplicaLostError, SlowReaderError
from deployments.engines.protocol import EngineReply
from deployments.ingress import failures
from deployments.ingress.dispatch import Answer
from deployments.ingress.exchange import Exchange
from deployments.ingress.provenance import Provenance, score_of
from deployments.ingress.tracing import RequestSpan
from deployments.telemetry.metrics import StreamTimer

DONE = b"data: [DONE]\n\n"


async def send_whole(
    exchange: Exchange, answer: Answer | None, reply: EngineReply, provenance: Provenance, span: RequestSpan
) -> EngineReply:
    """Send an answer that is known to its end, or the engine's refusal."""
    if reply.status == 200:
        span.said(reply.body)
    exchange.headers |= provenance.headers(answer, reply)
    body = reply.body if reply.status != 200 else provenance.add_to(reply.body, answer, reply)
    await exchange.respond(reply.status, body, headers=failures.retry_headers(reply))
    return reply


class StreamSender:
    """Sends one stream, from its head to its end."""

    def __init__(self, exchange: Exchange, provenance: Provenance, timer: StreamTimer, span: RequestSpan) -> None:
        self._exchange = exchange
        self._provenance = provenance
        self._timer = timer
        self._span = span

    async def refuse(self, answer: Answer | None, reply: EngineReply) -> EngineReply:
        """Refused before its first event: an ordinary error answer, not a stream."""
        self._exchange.headers |= self._provenance.headers(answer, reply)
        await self._exchange.respond(reply.status, reply.body, headers=failures.retry_headers(reply))
        return reply

    async def send(self, answer: Answer, first: bytes) -> EngineReply:
        """Send `first` and all that is still to come of `answer`."""
        await self._begin(answer)
        data: bytes | None = first
        try:
            while data is not None:
                await self._write(data)
                data = await answer.next()
            reply = failures.require_reply(answer.reply)
        except (ReplicaLostError, SlowReaderError) as error:
            return await break_off(self._exchange, self._span, error)
        return await self._end(answer, reply)

    async def send_known(self, answer: Answer | None, events: bytes, reply: EngineReply) -> EngineReply:
        """Send a stream that was held back to its end."""
        await self._begin(answer)
        if events:
            await self._write(events)
        return await self._end(answer, reply)

    async def _begin(self, answer: Answer | None) -> None:
        self._exchange.headers |= self._provenance.headers(answer, None)
        await self._exchange.begin_stream()

    async def _write(self, data: bytes) -> None:
        self._timer.chunk(time.monotonic(), data.count(b"\n\n"))
        self._span.said(data)
        await self._exchange.write(data)

    async def _end(self, answer: Answer | None, reply: EngineReply) -> EngineReply:
        judgement = self._provenance.judgement
        if judgement is not None and reply.confidence is not None:
            # What was judged before was the beginning; this is the whole.
            judgement.confidence = score_of(reply.confidence)
        ending = self._provenance.comment(answer, reply)
        if reply.status == 200:
            ending += DONE
        elif reply.body:
            ending = failures.error_event(reply.body) + ending
        await self._exchange.write(ending, last=True)
        return reply


async def break_off(exchange: Exchange, span: RequestSpan, error: Exception) -> EngineReply:
    """End a stream whose head is out with an error event, and without `[DONE]`."""
    span.failed(error)
    await exchange.write(failures.stream_error(error), last=True)
    return EngineReply(status=failures.STREAM_BROKEN)
