"""The application of the ingress as a whole, with scripted replicas behind it."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cluster.config.cluster import ClusterConfig
from cluster.config.load import parse_config
from cluster.keys import KeyLimits, mint
from deployments.access.keys_file import KeysFile
from deployments.channel.stream import ReplicaLostError, TokenStream
from deployments.engines.protocol import EngineReply
from deployments.ingress import dispatch
from deployments.replica.spec import ReplicaCall
from tests.unit.ingress.bare_ingress import EVENT, BareIngress, answer, bare_ingress, die
from tests.waiting import until

ROOT = Path(__file__).parents[3]
CHAT = "/v1/chat/completions"
CANARY = "canary-11fe"
HANDLER_S = 0.010
"""What a refusal may take of the event loop."""


def config(**sections: Any) -> ClusterConfig:
    made = parse_config((ROOT / "infra" / "clusters" / "local.yaml").read_text(), "local.yaml")
    return made.model_copy(update=sections)


@pytest.fixture
async def ingress(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BareIngress]:
    monkeypatch.setattr(dispatch, "REPLY_GRACE_S", 0.05)
    async with bare_ingress(config(), state_dir) as made:
        yield made


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "strong", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, **more}


# As many as fit into a body of the default size.
MANY = 40_000
HOSTILE: dict[str, dict[str, Any]] = {
    "huge n": {"n": 10**18},
    "best_of": {"best_of": 10**9},
    "stop list": {"stop": ["x"] * MANY},
    "long stops": {"stop": ["x" * 100] * 9000},
    "bias values": {"logit_bias": {str(token): 1 for token in range(MANY)}},
    "bias ids": {"logit_bias": {f"bad-{token}": 1 for token in range(MANY)}},
    "no tokens": {"max_tokens": 0},
    "negative tokens": {"max_tokens": -(10**9)},
    "long prompt": {"messages": [{"role": "user", "content": "word " * 200_000}]},
    "prompt of escapes": {"messages": [{"role": "user", "content": "\n" * 500_000}]},
    "many messages": {"messages": [{"role": "user", "content": "x"}] * 8000},
    "many parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 40}] * 1000}] * 12},
    "many unknown fields": {f"field-{number}": 1 for number in range(MANY)},
    "patterns": {
        "tools": [
            {"type": "function", "function": {"name": f"f{at}", "parameters": {"pattern": "a{1,2}" * 80, "enum": [at]}}}
            for at in range(1000)
        ]
    },
}


def loop_time(task: asyncio.Task[Any], loop: asyncio.AbstractEventLoop) -> list[float]:
    """Runs the loop until `task` is done; how long each of its turns took of this thread's own time, seconds."""
    turns = []
    while not task.done():
        began = time.thread_time()
        loop.call_soon(loop.stop)
        loop.run_forever()
        turns.append(time.thread_time() - began)
        time.sleep(0.0005)
    return turns


@pytest.mark.parametrize("name", HOSTILE)
def test_a_refusal_takes_less_than_ten_milliseconds_of_the_loop(name: str, state_dir: Path) -> None:
    """In all its turns together, however large the body: what takes longer runs on another thread."""
    body = json.dumps(chat(**HOSTILE[name])).encode()
    assert len(body) < 2**20
    with asyncio.Runner() as runner:
        context = bare_ingress(config(), state_dir)
        made = runner.run(context.__aenter__())
        loop = runner.get_loop()
        took = []
        # The first one loads and compiles; then the best of some, since other processes share the caches.
        for _ in range(6):
            task = loop.create_task(made.post(CHAT, body))
            took.append(sum(loop_time(task, loop)))
            assert task.result().status == 400
            assert task.result().error["type"] == "invalid_request_error"
        assert made.clients["dense"].calls == []
        runner.run(context.__aexit__(None, None, None))
    assert min(took[1:]) < HANDLER_S, took


@pytest.mark.parametrize("stream", [False, True])
async def test_a_lost_model_is_stood_in_for_by_its_roles_fallback(ingress: BareIngress, stream: bool) -> None:
    def last_breath(lost: TokenStream, call: ReplicaCall) -> None:
        ingress.clients["dense"].up = False
        die(lost, call)

    ingress.health.believed = True
    ingress.clients["dense"].behaviour = last_breath
    reply = await ingress.post(CHAT, chat(stream=stream))
    assert reply.status == 200
    assert reply.headers["x-pointsman-model"] == "sparse"
    assert reply.headers["x-pointsman-attempts"] == "2"
    assert [len(ingress.clients[name].calls) for name in ("dense", "sparse", "mini")] == [1, 1, 0]
    assert ingress.clients["sparse"].calls[0].request.body["model"] == "sparse"
    text = reply.body.decode()
    assert "dense was lost before it answered; fell back to sparse" in text
    assert ("data: [DONE]" in text) == stream
    assert reply.whole


async def test_a_model_that_is_gone_before_anybody_noticed_is_stood_in_for(ingress: BareIngress) -> None:
    ingress.health.believed = True
    ingress.clients["dense"].up = ingress.clients["sparse"].up = False
    reply = await ingress.post(CHAT, chat())
    assert (reply.status, reply.headers["x-pointsman-model"]) == (200, "mini")
    ingress.clients["mini"].up = False
    began = time.monotonic()
    reply = await ingress.post(CHAT, chat())
    assert time.monotonic() - began < 0.1
    assert (reply.status, reply.error["code"]) == (503, "no_replica")
    assert int(reply.headers["retry-after"]) >= 1


async def test_nothing_stands_in_once_the_caller_has_seen_a_byte(ingress: BareIngress) -> None:
    def break_off(stream: TokenStream, _: ReplicaCall) -> None:
        stream.feed(EVENT)
        stream.fail(ReplicaLostError("that broke off"))

    ingress.clients["dense"].behaviour = break_off
    reply = await ingress.post(CHAT, chat(stream=True))
    assert reply.status == 200
    assert reply.body.startswith(EVENT)
    assert b'"replica_lost"' in reply.body
    assert b"[DONE]" not in reply.body
    assert ingress.clients["sparse"].calls == []


async def test_a_stand_in_that_holds_too_little_is_passed_over(state_dir: Path) -> None:
    made = config()
    sparse = made.models["sparse"]
    small = sparse.model_copy(update={"engine": sparse.engine.model_copy(update={"max_model_len": 64})})
    made = made.model_copy(update={"models": {**made.models, "sparse": small}})
    async with bare_ingress(made, state_dir) as ingress:
        ingress.health.believed = True
        ingress.clients["dense"].up = False
        reply = await ingress.post(CHAT, chat(max_tokens=100))
        assert (reply.status, reply.headers["x-pointsman-model"]) == (200, "mini")
        ingress.clients["mini"].up = False
        assert (await ingress.post(CHAT, chat(max_tokens=100))).status == 503


async def test_a_full_queue_is_no_loss(ingress: BareIngress) -> None:
    def full(stream: TokenStream, _: ReplicaCall) -> None:
        stream.fail(dispatch.QueueFullError("dense"))

    ingress.clients["dense"].behaviour = full
    reply = await ingress.post(CHAT, chat())
    assert (reply.status, reply.error["code"], reply.headers["retry-after"]) == (429, "queue_full", "1")
    assert ingress.clients["sparse"].calls == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("status", "known", "told"), [(429, 7, "7"), (503, None, "1"), (400, None, None)])
async def test_an_engines_refusal_says_when_to_come_back(
    ingress: BareIngress, stream: bool, status: int, known: int | None, told: str | None
) -> None:
    refusal = EngineReply(status, b'{"error":{}}', retry_after_s=known)
    ingress.clients["dense"].behaviour = lambda waiting, _call: waiting.finish(refusal)
    reply = await ingress.post(CHAT, chat(stream=stream))
    assert (reply.status, reply.headers.get("retry-after")) == (status, told)


async def test_whatever_goes_wrong_in_a_stream_is_said_in_it(ingress: BareIngress) -> None:
    def odd(stream: TokenStream, _: ReplicaCall) -> None:
        stream.feed(EVENT)
        stream.fail(ValueError(CANARY))

    ingress.clients["dense"].behaviour = odd
    reply = await ingress.post(CHAT, chat(stream=True))
    assert reply.status == 200
    assert json.loads(reply.body.split(b"\n\n")[-2].removeprefix(b"data: "))["error"]["code"] == "internal_error"
    assert b"[DONE]" not in reply.body
    assert reply.whole
    assert CANARY.encode() not in reply.body
    plain = await ingress.post(CHAT, chat())
    assert (plain.status, plain.error["code"]) == (500, "internal_error")
    assert CANARY not in plain.body.decode()


async def test_the_contracts_time_is_one_for_all_attempts(state_dir: Path) -> None:
    made = config()
    strong = made.contracts["strong"].model_copy(update={"timeout_s": 0.3, "latency_target_s": 0.1})
    made = made.model_copy(update={"contracts": {**made.contracts, "strong": strong}})
    async with bare_ingress(made, state_dir) as ingress:
        ingress.clients["dense"].behaviour = lambda _stream, _call: None
        reply = await ingress.post(CHAT, chat())
        assert (reply.status, reply.error["code"]) == (504, "timeout")
        assert "0.3 seconds" in reply.error["message"]


async def test_too_many_at_once_are_sent_away_with_a_time(state_dir: Path) -> None:
    made = config()
    limits = made.ingress.limits.model_copy(update={"max_concurrent_requests": 2})
    made = made.model_copy(update={"ingress": made.ingress.model_copy(update={"limits": limits})})
    async with bare_ingress(made, state_dir) as ingress:
        stuck: list[TokenStream] = []
        ingress.clients["dense"].behaviour = lambda stream, _call: stuck.append(stream)
        running = [asyncio.ensure_future(ingress.post(CHAT, chat())) for _ in range(2)]
        while len(stuck) < 2:
            await asyncio.sleep(0.001)
        refused = await ingress.post(CHAT, chat())
        assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (503, "overloaded", "1")
        assert (await ingress.request("GET", "/readyz")).status == 200
        for stream in stuck:
            stream.finish(EngineReply(200, b"{}"))
        assert [reply.status for reply in await asyncio.gather(*running)] == [200, 200]
        ingress.clients["dense"].behaviour = answer
        assert (await ingress.post(CHAT, chat())).status == 200


async def leave(ingress: BareIngress, body: dict[str, Any], key: str) -> None:
    """A caller that goes away once a replica has its request."""
    calls = ingress.clients["dense"].calls
    before = len(calls)
    task = asyncio.create_task(ingress.post(CHAT, body, authorization=f"Bearer {key}"))
    await until(lambda: len(calls) > before)
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_leaving_is_no_way_around_a_limit(ingress: BareIngress, state_dir: Path) -> None:
    minted = mint("quitter", time.time(), secrets.token_bytes, tenant="acme", limits=KeyLimits(tokens_per_minute=300))
    KeysFile(state_dir / "keys.jsonl").append(minted.record)
    await until(lambda: ingress.services.gate._live.records)
    ingress.clients["dense"].behaviour = lambda _stream, _call: None
    await leave(ingress, chat(max_tokens=200), minted.key)
    used = ingress.services.gate.usage_of(minted.record)
    assert used["completion_tokens"] == 200
    assert int(used["prompt_tokens"]) > 0
    refused = await ingress.post(CHAT, chat(max_tokens=200), authorization=f"Bearer {minted.key}")
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    # What a stream had brought by then is known.
    ingress.clients["dense"].behaviour = lambda stream, _call: stream.feed(EVENT * 3)
    await leave(ingress, chat(max_tokens=20, stream=True), minted.key)
    assert ingress.services.gate.usage_of(minted.record)["completion_tokens"] == 203
    # An engine's refusal costs nothing and is counted as one.
    ingress.clients["dense"].behaviour = lambda stream, _call: stream.finish(EngineReply(400, b'{"error": {}}'))
    before = ingress.services.gate.usage_of(minted.record)
    await ingress.post(CHAT, chat(max_tokens=1), authorization=f"Bearer {minted.key}")
    after = ingress.services.gate.usage_of(minted.record)
    assert (after["rejected"], after["completion_tokens"]) == (int(before["rejected"]) + 1, 203)
    assert {call.request.tenant for call in ingress.clients["dense"].calls} == {"acme"}


async def test_readiness_waits_for_every_model(ingress: BareIngress) -> None:
    assert (await ingress.request("GET", "/readyz")).status == 200
    ingress.clients["mini"].up = False
    reply = await ingress.request("GET", "/readyz")
    models = json.loads(reply.body)["models"]
    assert reply.status == 503
    assert [name for name, model in models.items() if not model["ready"]] == ["mini"]
    assert models["mini"]["reason"]
    # Whoever asks for this ingress alone is no worse off for it.
    assert (await ingress.request("GET", "/readyz?exclude=models")).status == 200


@pytest.mark.parametrize("path", ["/readyz", "/readyz?exclude=models"])
async def test_an_ingress_that_is_to_stop_is_not_ready(ingress: BareIngress, path: str) -> None:
    ingress.health.leaving = True
    reply = await ingress.request("GET", path)
    assert (reply.status, json.loads(reply.body)["status"]) == (503, "stopping")
    assert (await ingress.request("GET", "/livez")).status == 200
    assert (await ingress.post(CHAT, chat())).status == 200
