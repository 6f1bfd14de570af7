"""The external engine against a second server on this machine."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cluster.config.model import UpstreamConfig
from deployments.engines.external import ExternalEngine
from deployments.engines.protocol import Endpoint, EngineReply, EngineRequest, EngineStartError
from tests.integration.upstream import CANARY, KEY, MODEL, Upstream, running_upstream
from tests.waiting import until

TRACE = {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with running_upstream() as server:
        yield server


@pytest.fixture(scope="module")
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    before = trace._TRACER_PROVIDER
    trace._TRACER_PROVIDER = provider
    yield exporter
    trace._TRACER_PROVIDER = before


@dataclass
class Caller:
    engine: ExternalEngine
    events: list[bytes] = field(default_factory=list)

    async def ask(self, text: str, endpoint: Endpoint = Endpoint.CHAT, **more: object) -> EngineReply:
        body = {"messages": [{"role": "user", "content": text}]} if endpoint is Endpoint.CHAT else {"prompt": text}
        return await self.engine.run(EngineRequest("r", endpoint, {**body, **more}, TRACE), self.events.append)

    @property
    def chunks(self) -> list[dict]:
        return [json.loads(part[6:]) for part in b"".join(self.events).decode().split("\n\n") if part]


def config(upstream: Upstream, **more: object) -> UpstreamConfig:
    return UpstreamConfig(base_url=upstream.url, model=MODEL, api_key_env="UPSTREAM_TEST_KEY", **more)


@pytest.fixture
async def caller(
    upstream: Upstream, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Caller]:
    monkeypatch.setenv("UPSTREAM_TEST_KEY", KEY)
    # A proxy of the environment must not be used: this one refuses every connection.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    engine = ExternalEngine("outside", config(upstream, timeout_s=1.5, max_concurrency=4))
    await engine.start()
    upstream.requests.clear()
    spans.clear()
    yield Caller(engine)
    await engine.close()


def last_span(spans: InMemorySpanExporter) -> ReadableSpan:
    return spans.get_finished_spans()[-1]


async def test_answer_and_span_under_the_clusters_name(
    caller: Caller, upstream: Upstream, spans: InMemorySpanExporter
) -> None:
    reply = await caller.ask("ok")
    answer = json.loads(reply.body)
    assert (reply.status, answer["model"], answer["id"]) == (200, "outside", "up-1")
    assert answer["choices"][0]["message"]["content"] == "hello"
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.cached_tokens) == (5, 3, 2)
    assert reply.finish_reason == "stop"
    path, headers, body = upstream.requests[-1]
    assert (path, body["model"], headers["authorization"]) == ("/v1/chat/completions", MODEL, f"Bearer {KEY}")
    assert "traceparent" not in headers
    span = last_span(spans)
    assert (span.name, span.kind.name) == (f"chat {MODEL}", "CLIENT")
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == "a" * 32
    assert span.attributes["gen_ai.operation.name"] == "chat"
    assert span.attributes["gen_ai.usage.output_tokens"] == 3
    assert span.attributes["server.port"] == upstream.port
    assert caller.engine.stats().generated_tokens == 3


async def test_trace_context_is_forwarded_when_told_so(
    upstream: Upstream, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ExternalEngine("outside", config(upstream, forward_trace_context=True))
    await engine.start()
    await Caller(engine).ask("ok")
    await engine.close()
    assert upstream.requests[-1][1]["traceparent"] == TRACE["traceparent"]


async def test_completions_and_embeddings(caller: Caller, upstream: Upstream) -> None:
    assert (await caller.ask("ok", Endpoint.COMPLETION)).status == 200
    assert upstream.requests[-1][0] == "/v1/completions"
    request = EngineRequest("r", Endpoint.EMBEDDING, {"input": "text"})
    reply = await caller.engine.run(request, caller.events.append)
    answer = json.loads(reply.body)
    assert (answer["model"], len(answer["data"][0]["embedding"]), reply.usage.prompt_tokens) == ("outside", 50_000, 4)


async def test_stream_arrives_event_by_event(caller: Caller) -> None:
    reply = await caller.ask("ok", stream=True)
    assert len(caller.events) >= 3
    assert [c["choices"][0]["delta"].get("content") for c in caller.chunks] == ["one ", "two ", "three", None]
    assert {c["model"] for c in caller.chunks} == {"outside"}
    assert (reply.status, reply.finish_reason, reply.usage.completion_tokens) == (200, "stop", 3)
    assert b"[DONE]" not in b"".join(caller.events)
    assert b"usage" not in b"".join(caller.events)


async def test_usage_chunk_only_for_those_who_ask(caller: Caller, upstream: Upstream) -> None:
    await caller.ask("ok", stream=True, stream_options={"include_usage": True})
    assert caller.chunks[-1]["usage"]["total_tokens"] == 8
    assert caller.chunks[-1]["choices"] == []
    caller.events.clear()
    reply = await caller.ask("ok", stream=True, stream_options={"include_usage": False})
    assert upstream.requests[-1][2]["stream_options"] == {"include_usage": True}
    assert reply.usage.prompt_tokens == 5
    assert b"usage" not in b"".join(caller.events)


@pytest.mark.parametrize("variant", ["null-usage", "usage-with-choices", "bare-done"])
async def test_dialects_of_streams(caller: Caller, variant: str) -> None:
    reply = await caller.ask(variant, stream=True)
    assert (reply.status, reply.finish_reason, reply.usage.completion_tokens) == (200, "stop", 3)
    assert b"usage" not in b"".join(caller.events)
    assert caller.chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("behaviour", "status", "code"),
    [
        ("429", 429, "upstream_rate_limited"),
        ("400", 400, "context_length_exceeded"),
        ("422", 400, "context_length_exceeded"),
        ("401", 502, "upstream_credentials"),
        ("404", 502, "upstream_not_found"),
        ("302", 502, "upstream_redirect"),
        ("500", 502, "upstream_error"),
        ("503", 502, "upstream_error"),
        ("504", 504, "upstream_timeout"),
        ("stuck", 504, "upstream_timeout"),
        ("no-json", 502, "upstream_malformed"),
        ("no-choices", 502, "upstream_malformed"),
        ("list", 502, "upstream_malformed"),
        ("gzip", 502, "upstream_malformed"),
        ("huge", 502, "upstream_malformed"),
        ("error-in-200", 429, "upstream_rate_limited"),
    ],
)
async def test_failures_leak_nothing(
    caller: Caller,
    upstream: Upstream,
    spans: InMemorySpanExporter,
    caplog: pytest.LogCaptureFixture,
    behaviour: str,
    status: int,
    code: str,
) -> None:
    caplog.set_level(logging.DEBUG, "deployments")
    reply = await caller.ask(behaviour)
    error = json.loads(reply.body)["error"]
    assert (reply.status, error["code"]) == (status, code)
    span = last_span(spans)
    assert span.attributes["error.type"] == code
    assert span.status.status_code.name == "ERROR"
    everything = reply.body.decode() + caplog.text + str(dict(span.attributes)) + str(span.status.description)
    for secret in (KEY, CANARY, "/v1", "127.0.0.1:9"):
        assert secret not in everything
    assert str(upstream.port) not in reply.body.decode()
    if behaviour == "429":
        assert "7 s" in error["message"]
        assert reply.retry_after_s == 7


async def test_nothing_listens_there(caller: Caller, free_port: int) -> None:
    gone = UpstreamConfig(base_url=f"http://127.0.0.1:{free_port}/v1", model=MODEL)
    engine = ExternalEngine("outside", gone)
    await engine.start()
    reply = await Caller(engine).ask("ok", stream=True)
    await engine.close()
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (502, "upstream_unreachable")


@pytest.mark.parametrize("behaviour", ["429", "500", "error-first", "not-a-stream"])
async def test_stream_refused_before_its_first_event(caller: Caller, behaviour: str) -> None:
    reply = await caller.ask(behaviour, stream=True)
    assert reply.status == (429 if behaviour in ("429", "error-first") else 502)
    assert caller.events == []
    assert KEY not in reply.body.decode()


@pytest.mark.parametrize("behaviour", ["cut", "broken", "not-json", "error-event", "big-event"])
async def test_stream_cut_in_the_middle_ends_with_an_error(caller: Caller, behaviour: str) -> None:
    reply = await caller.ask(behaviour, stream=True)
    assert reply.status == 502
    sent = b"".join(caller.events)
    assert [c["choices"][0]["delta"]["content"] for c in caller.chunks] == ["one ", "two ", "three"]
    assert json.loads(reply.body)["error"]["type"] == "server_error"
    assert b"[DONE]" not in sent
    assert KEY.encode() not in sent
    assert CANARY.encode() not in sent


async def test_stream_that_does_not_end_is_ended(caller: Caller) -> None:
    reply = await caller.ask("endless", stream=True)
    assert reply.status == 504
    assert json.loads(reply.body)["error"]["code"] == "upstream_timeout"


async def test_cancelling_closes_the_upstreams_connection(caller: Caller, upstream: Upstream) -> None:
    upstream.closed_early.clear()
    task = asyncio.create_task(caller.ask("endless", stream=True))
    await until(lambda: len(caller.events) >= 4)
    assert caller.engine.stats().running == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: upstream.closed_early, timeout_s=1.0)
    assert caller.engine.stats().running == 0


async def test_concurrency_is_bounded_and_connections_are_kept(caller: Caller, upstream: Upstream) -> None:
    upstream.most_running = 0
    upstream.connections.clear()
    replies = await asyncio.gather(*(caller.ask("ok") for _ in range(20)))
    assert {reply.status for reply in replies} == {200}
    assert upstream.most_running <= 4
    await asyncio.gather(*(Caller(caller.engine).ask("ok", stream=True) for _ in range(8)))
    assert len(upstream.connections) <= 4
    assert (caller.engine.stats().running, caller.engine.stats().waiting) == (0, 0)


async def test_key_that_is_missing_or_broken_stops_the_start(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UPSTREAM_TEST_KEY", raising=False)
    with pytest.raises(EngineStartError, match="UPSTREAM_TEST_KEY is not set"):
        await ExternalEngine("outside", config(upstream)).start()
    monkeypatch.setenv("UPSTREAM_TEST_KEY", "sk-secret\nx: y")
    with pytest.raises(EngineStartError, match="characters") as caught:
        await ExternalEngine("outside", config(upstream)).start()
    assert "sk-secret" not in str(caught.value)


async def test_heartbeat_asks_nobody(caller: Caller, upstream: Upstream) -> None:
    await caller.engine.heartbeat()
    assert upstream.requests == []
    assert caller.engine.pids() == ()
