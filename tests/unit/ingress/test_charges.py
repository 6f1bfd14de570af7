"""What a judged request is charged: everything that engines made for it, once, however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deployments.channel.stream import ReplicaLostError, TokenStream
from deployments.engines.protocol import EngineReply, TokenUsage, judged_event
from deployments.ingress import dispatch, generate
from deployments.ingress.exchange import Exchange
from deployments.replica.spec import ReplicaCall
from tests.unit.ingress.bare_ingress import BareIngress, Behaviour, bare_ingress
from tests.unit.ingress.judged import CHAT, chat, config, event, hang, in_turn, refuses, says, sure, text_of, told
from tests.unit.ingress.test_verified import two_stages, yes

BEST: Any = {"grounding": False}


@pytest.fixture
async def ingress(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BareIngress]:
    monkeypatch.setattr(dispatch, "REPLY_GRACE_S", 0.05)
    async with bare_ingress(config(), state_dir) as made:
        for client in made.clients.values():
            hang(client)
        yield made


@pytest.fixture
def charged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Prompt and completion tokens that requests were charged."""
    seen: list[tuple[int, int]] = []
    usage_of = generate._usage

    def spy(*of: Any) -> TokenUsage:
        usage = usage_of(*of)
        seen.append((usage.prompt_tokens, usage.completion_tokens))
        return usage

    monkeypatch.setattr(generate, "_usage", spy)
    return seen


def runs_on(*events: bytes, after_s: float = 0.02, ends: TokenUsage | Exception | None = None) -> Behaviour:
    """A doubtful stream that makes `events` a moment later, and then ends."""

    def behave(stream: TokenStream, _: ReplicaCall) -> None:
        stream.feed(judged_event(sure(0.3)))
        for word in ("the ", "first ", "one "):
            stream.feed(event(word))

        def go_on() -> None:
            for data in events:
                stream.feed(data)
            if isinstance(ends, Exception):
                stream.fail(ends)
            elif ends is not None:
                stream.finish(EngineReply(200, b"", ends, "stop", confidence=sure(0.3)))

        asyncio.get_running_loop().call_later(after_s, go_on)

    return behave


def later(behaviour: Behaviour, after_s: float) -> Behaviour:
    return lambda stream, call: asyncio.get_running_loop().call_later(after_s, behaviour, stream, call)


def silent(_: TokenStream, __: ReplicaCall) -> None:
    """Takes the call, and says nothing."""


def patience(ingress: BareIngress, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    contracts = ingress.services.config.contracts
    for role, contract in list(contracts.items()):
        monkeypatch.setitem(contracts, role, contract.model_copy(update={"timeout_s": seconds}))


def stream(**more: Any) -> dict[str, Any]:
    return chat(stream=True, temperature=0, max_tokens=500, pointsman=BEST, **more)


async def test_a_kept_stream_is_charged_to_its_end(ingress: BareIngress, charged: list[tuple[int, int]]) -> None:
    ingress.clients["mini"].behaviour = runs_on(ends=TokenUsage(10, 500))
    ingress.clients["dense"].behaviour = later(says("a better one by far", 0.9, early=0.9), 0.1)
    reply = await ingress.post(CHAT, stream())
    assert reply.headers["x-pointsman-model"] == "dense"
    assert (told(reply)["tokens_beside"], charged) == (510, [(20, 505)])


async def test_a_kept_stream_counts_to_its_end_against_the_bound(
    state_dir: Path, charged: list[tuple[int, int]]
) -> None:
    async with bare_ingress(config(max_tokens=600), state_dir) as ingress:
        ingress.clients["mini"].behaviour = runs_on(ends=TokenUsage(10, 500))
        hang(ingress.clients["dense"])
        reply = await ingress.post(CHAT, stream())
        assert ingress.clients["dense"].calls == []
        assert "would pass 600 tokens" in told(reply)["trail"][0]["why"]
        assert charged == [(10, 500)]


async def test_a_kept_stream_may_grow_past_the_buffer_of_one(ingress: BareIngress) -> None:
    limit = ingress.services.config.ingress.limits.max_buffered_bytes_per_stream
    large = event("x" * (limit // 4))

    def behave(made: TokenStream, call: ReplicaCall) -> None:
        runs_on()(made, call)
        for at in range(1, 7):
            asyncio.get_running_loop().call_later(0.05 * at, made.feed, large)
        end = EngineReply(200, b"", TokenUsage(10, 9), "stop", confidence=sure(0.3))
        asyncio.get_running_loop().call_later(0.4, made.finish, end)

    ingress.clients["mini"].behaviour = behave
    ingress.clients["dense"].behaviour = later(refuses(500), 0.5)
    reply = await ingress.post(CHAT, stream())
    assert reply.body.count(large) == 6
    assert reply.body.endswith(b"data: [DONE]\n\n")


async def test_a_kept_stream_that_breaks_leaves_the_next_best(ingress: BareIngress) -> None:
    ingress.clients["mini"].behaviour = runs_on(ends=ReplicaLostError("that died"))
    ingress.clients["dense"].behaviour = later(says("worse", 0.1, early=0.1), 0.1)
    reply = await ingress.post(CHAT, stream())
    assert reply.headers["x-pointsman-model"] == "dense"
    assert b"worse" in reply.body and reply.body.endswith(b"data: [DONE]\n\n")


async def test_who_leaves_pays_for_the_stream_that_was_kept(
    ingress: BareIngress, charged: list[tuple[int, int]]
) -> None:
    ingress.clients["mini"].behaviour = runs_on(*[event("more ")] * 400)
    ingress.clients["dense"].behaviour = silent
    task = asyncio.ensure_future(ingress.post(CHAT, stream()))
    await asyncio.sleep(0.2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert charged[0][1] >= 400


@pytest.mark.parametrize("more", [{"grounding": True}, BEST])
async def test_who_leaves_while_something_else_is_sent_pays_once(
    ingress: BareIngress, charged: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, more: Any
) -> None:
    async def stuck(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Exchange, "respond", stuck)
    ingress.clients["mini"].behaviour = says("an answer", 0.3)
    ingress.clients["dense"].behaviour = says("a worse one", 0.1)
    task = asyncio.ensure_future(ingress.post(CHAT, chat(max_tokens=500, temperature=0, pointsman=more)))
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert charged == [(20, 10)]


async def test_the_passages_are_sent_with_no_model_at_work(
    ingress: BareIngress, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = hang(ingress.clients["mini"], *[event("guess ")] * 3, early=0.2)
    at_work: list[bool] = []
    begin = Exchange.begin_stream

    async def watched(exchange: Exchange) -> None:
        at_work.append(not calls[0].cancelled)
        await begin(exchange)

    monkeypatch.setattr(Exchange, "begin_stream", watched)
    asked = {"grounding": True, "min_confidence": 0.8, "retries": 0}
    await ingress.post(CHAT, chat(stream=True, temperature=0, pointsman=asked))
    assert at_work == [False]


async def test_a_check_that_hangs_costs_nobody_the_answer(
    ingress: BareIngress, charged: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    patience(ingress, monkeypatch, 2.0)
    ingress.clients["mini"].behaviour = says("an answer", 0.9)
    ingress.clients["dense"].behaviour = silent
    reply = await ingress.post(CHAT, chat(pointsman={"verify": {"verifier": True}, **BEST}))
    assert (reply.status, text_of(reply), told(reply)["verified"]) == (200, "an answer", False)
    # The verifier had the question, whatever it made of it.
    assert charged[0][0] > 10 and charged[0][1] == 5


async def test_who_leaves_a_check_pays_for_what_was_made(ingress: BareIngress, charged: list[tuple[int, int]]) -> None:
    ingress.clients["mini"].behaviour = says("an answer", 0.9)
    ingress.clients["dense"].behaviour = silent
    body = chat(max_tokens=500, pointsman={"verify": {"verifier": True}, **BEST})
    task = asyncio.ensure_future(ingress.post(CHAT, body))
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert charged[0][1] == 5


async def test_a_rewording_whose_check_hangs_is_charged(
    ingress: BareIngress, charged: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    patience(ingress, monkeypatch, 2.0)
    ingress.clients["dense"].behaviour = in_turn(says("facts", 0.9, logprobs=yes(0.9)), silent)
    ingress.clients["sparse"].behaviour = says("well worded", 0.9)
    reply = await ingress.post(CHAT, two_stages())
    assert text_of(reply) == "facts"
    assert charged[0][1] == 10
