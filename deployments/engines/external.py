"""An external model: any OpenAI-compatible upstream, behind the same protocol as the cluster's own engines."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit

import httpx
import msgspec
from opentelemetry.trace import Span, SpanKind

from cluster.api.errors import ApiError
from cluster.api.json_body import JsonObject
from cluster.config.model import UpstreamConfig
from cluster.telemetry import names
from deployments.engines import external_errors
from deployments.engines.expert_routing import NoExpertLoad
from deployments.engines.external_answer import MAX_RESPONSE_BYTES, drain, plain_answer, read_all, read_start
from deployments.engines.external_events import StreamRelay
from deployments.engines.kv_precision import FixedKvPrecision
from deployments.engines.protocol import (
    Emit,
    Endpoint,
    EngineDeadError,
    EngineReply,
    EngineRequest,
    EngineStartError,
    EngineStats,
)
from deployments.engines.spans import EngineTracer, note_reply

_log = logging.getLogger(__name__)

OFF_LOOP_BYTES: Final = 256 * 1024
"""A plain answer larger than this is taken apart on a thread."""

_PATHS: Final = {
    Endpoint.CHAT: "/chat/completions",
    Endpoint.COMPLETION: "/completions",
    Endpoint.EMBEDDING: "/embeddings",
}


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of a request, for the caller and for the span."""

    reply: EngineReply
    error: str | None = None
    response_id: str | None = None
    response_model: str | None = None


class ExternalEngine(FixedKvPrecision, NoExpertLoad):
    """Forwards requests to an upstream.

    The upstream learns nothing about the caller's trace unless its config says `forward_trace_context`. `transport` stands
    in for the network in tests.
    """

    kind = "external"

    def __init__(
        self,
        name: str,
        upstream: UpstreamConfig,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._name = name
        self._upstream = upstream
        self._forward = upstream.forward_trace_context
        self._transport = transport
        self._client: httpx.AsyncClient | None = None
        self._slots = asyncio.Semaphore(upstream.max_concurrency)
        self._stats = EngineStats()
        parts = urlsplit(upstream.base_url)
        self._tracer = EngineTracer(
            SpanKind.CLIENT,
            upstream.model,
            {
                # What the conventions ask for where it is an OpenAI-compatible server of unknown make.
                names.PROVIDER: "openai",
                names.SERVER_ADDRESS: parts.hostname or "",
                names.SERVER_PORT: parts.port or (443 if parts.scheme == "https" else 80),
            },
        )

    async def start(self) -> None:
        """Open the connection pool. Raises `EngineStartError` if the upstream's key is not in the environment."""
        limit = self._upstream.max_concurrency
        self._client = httpx.AsyncClient(
            # Nothing of the environment: a proxy variable would send prompts and keys elsewhere.
            trust_env=False,
            follow_redirects=False,
            headers=self._headers(),
            timeout=httpx.Timeout(self._upstream.timeout_s, connect=self._upstream.connect_timeout_s),
            limits=httpx.Limits(max_connections=limit, max_keepalive_connections=limit, keepalive_expiry=30.0),
            transport=self._transport,
        )

    def _headers(self) -> dict[str, str]:
        # No compression: a bound on what is read is a bound on what is held.
        headers = {"user-agent": "pointsman", "accept-encoding": "identity", "content-type": "application/json"}
        variable = self._upstream.api_key_env
        if variable is None:
            return headers
        key = os.environ.get(variable, "").strip()
        if not key:
            raise EngineStartError(
                f"model {self._name!r}: the environment variable {variable} is not set; "
                "export it with the upstream's key where the cluster is started, then start it again"
            )
        if not key.isascii() or not key.isprintable():
            raise EngineStartError(
                f"model {self._name!r}: the environment variable {variable} has characters that a key cannot have; "
                "set it to the upstream's key alone"
            )
        return {**headers, "authorization": f"Bearer {key}"}

    async def run(self, request: EngineRequest, emit: Emit) -> EngineReply:
        """Serve one request; see `Engine.run`. Cancelling it closes the upstream's connection."""
        client = self._open_client()
        relay = StreamRelay(self._name, _usage_wanted(request.body))
        with self._tracer.request(request) as span:
            try:
                async with asyncio.timeout(self._upstream.timeout_s), self._slot():
                    outcome = await self._exchange(client, request, relay, emit)
            except (TimeoutError, httpx.TimeoutException):
                outcome = self._failed(external_errors.timed_out(self._upstream.timeout_s), relay)
            except httpx.HTTPError:
                broken = external_errors.cut_off() if relay.emitted else external_errors.unreachable()
                outcome = self._failed(broken, relay)
            except ApiError as error:
                outcome = self._failed(error, relay)
            _note(span, outcome)
        self._count(outcome.reply)
        return outcome.reply

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """One of the upstream's places; waiting for it counts towards the request's time."""
        self._stats = replace(self._stats, waiting=self._stats.waiting + 1)
        try:
            await self._slots.acquire()
        finally:
            self._stats = replace(self._stats, waiting=self._stats.waiting - 1)
        self._stats = replace(self._stats, running=self._stats.running + 1)
        try:
            yield
        finally:
            self._stats = replace(self._stats, running=self._stats.running - 1)
            self._slots.release()

    async def _exchange(
        self, client: httpx.AsyncClient, request: EngineRequest, relay: StreamRelay, emit: Emit
    ) -> _Outcome:
        streamed = request.body.get("stream") is True
        headers = {"accept": "text/event-stream" if streamed else "application/json"}
        if self._forward:
            headers |= {name: value for name, value in request.trace_headers.items() if name.lower() in _TRACE_HEADERS}
        url = self._upstream.base_url.rstrip("/") + _PATHS[request.endpoint]
        body = msgspec.json.encode(self._upstream_body(request, streamed))
        async with client.stream("POST", url, content=body, headers=headers) as response:
            if response.status_code != 200:
                error = external_errors.from_status(response.status_code, response.headers, await read_start(response))
                _log.warning(
                    "the upstream of a model answered with status %d", response.status_code, extra={"model": self._name}
                )
                raise error
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise external_errors.malformed("it is compressed, which was not asked for")
            if not streamed:
                return await self._plain(request.endpoint, response)
            if not response.headers.get("content-type", "").lower().startswith("text/event-stream"):
                raise external_errors.malformed("it is not a stream of events")
            return await self._stream(response, relay, emit)

    def _upstream_body(self, request: EngineRequest, streamed: bool) -> JsonObject:
        body = {**request.body, "model": self._upstream.model}
        if streamed:
            options = body.get("stream_options")
            # Without it the cluster could not count what the caller used.
            body["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        return body

    async def _plain(self, endpoint: Endpoint, response: httpx.Response) -> _Outcome:
        data = await read_all(response)
        if len(data) > OFF_LOOP_BYTES:
            answer = await asyncio.to_thread(plain_answer, self._name, endpoint, data)
        else:
            answer = plain_answer(self._name, endpoint, data)
        return _Outcome(answer.reply, response_id=answer.response_id, response_model=answer.response_model)

    async def _stream(self, response: httpx.Response, relay: StreamRelay, emit: Emit) -> _Outcome:
        size = 0
        chunks = response.aiter_raw()
        async for chunk in chunks:
            size += len(chunk)
            if size > MAX_RESPONSE_BYTES:
                raise external_errors.malformed(f"it is over {MAX_RESPONSE_BYTES} bytes")
            relay.feed(chunk, emit)
            if relay.done:
                await drain(chunks)
                break
        relay.finish()
        return _Outcome(
            EngineReply(status=200, usage=relay.usage, finish_reason=relay.finish_reason),
            response_id=relay.response_id,
            response_model=relay.response_model,
        )

    def _failed(self, error: ApiError, relay: StreamRelay) -> _Outcome:
        wait = error.headers.get("retry-after")
        return _Outcome(
            EngineReply(
                status=error.status,
                body=error.body(),
                usage=relay.usage,
                retry_after_s=int(wait) if wait is not None else None,
            ),
            error=error.code,
            response_id=relay.response_id,
            response_model=relay.response_model,
        )

    def _count(self, reply: EngineReply) -> None:
        self._stats = replace(
            self._stats,
            prompt_tokens=self._stats.prompt_tokens + reply.usage.prompt_tokens,
            generated_tokens=self._stats.generated_tokens + reply.usage.completion_tokens,
        )

    def stats(self) -> EngineStats:
        """Requests at the upstream and waiting for it, and tokens that it counted."""
        return self._stats

    async def heartbeat(self) -> None:
        """Whether requests can be sent. The upstream is not asked: it would be once a second, by every replica."""
        self._open_client()

    def pids(self) -> tuple[int, ...]:
        """None: nothing of it runs on this machine."""
        return ()

    async def close(self) -> None:
        """Close all connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _open_client(self) -> httpx.AsyncClient:
        if self._client is None:
            raise EngineDeadError(f"the connections of external model {self._name!r} are closed")
        return self._client


_TRACE_HEADERS: Final = frozenset({"traceparent", "tracestate"})


def _usage_wanted(body: JsonObject) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _note(span: Span, outcome: _Outcome) -> None:
    if outcome.response_id is not None:
        span.set_attribute(names.RESPONSE_ID, outcome.response_id)
    if outcome.response_model is not None:
        span.set_attribute(names.RESPONSE_MODEL, outcome.response_model)
    note_reply(span, outcome.reply, outcome.error)
