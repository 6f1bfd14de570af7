"""Requests whose answers are judged, with scripted replicas behind the ingress."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cluster.keys import mint
from cluster.routing.template import NOTHING_GROUNDED
from deployments.access.keys_file import KeysFile
from deployments.channel.stream import ReplicaLostError, TokenStream
from deployments.engines.protocol import EngineReply
from deployments.ingress import dispatch
from deployments.replica.spec import ReplicaCall
from tests.unit.ingress.bare_ingress import BareIngress, Behaviour, bare_ingress, die
from tests.unit.ingress.judged import (
    CHAT,
    USAGE,
    chat,
    config,
    event,
    hang,
    in_turn,
    refuses,
    says,
    sure,
    temperatures,
    text_of,
    told,
)
from tests.waiting import until


@pytest.fixture
async def ingress(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BareIngress]:
    monkeypatch.setattr(dispatch, "REPLY_GRACE_S", 0.05)
    async with bare_ingress(config(), state_dir) as made:
        yield made


async def test_a_confident_answer_leaves_at_once(ingress: BareIngress) -> None:
    ingress.clients["mini"].behaviour = says("sure", 0.9)
    reply = await ingress.post(CHAT, chat())
    assert (reply.status, text_of(reply)) == (200, "sure")
    assert reply.headers["x-pointsman-confidence"] == "0.9000"
    assert (told(reply)["confidence"], told(reply)["attempts"], told(reply)["verified"]) == (0.9, 1, None)
    assert ingress.clients["mini"].calls[0].request.judge


async def test_a_doubtful_answer_is_asked_for_again_then_of_a_stronger_model(ingress: BareIngress) -> None:
    ingress.clients["mini"].behaviour = in_turn(says("first", 0.1), says("second", 0.2))
    ingress.clients["dense"].behaviour = says("third", 0.8)
    reply = await ingress.post(CHAT, chat(temperature=1))
    assert text_of(reply) == "third"
    assert temperatures(ingress.clients["mini"]) == [1, 0.2]
    assert temperatures(ingress.clients["dense"]) == [0.2]
    assert reply.headers["x-pointsman-model"] == "dense"
    assert reply.headers["x-pointsman-attempts"] == "3"
    trail = told(reply)["trail"]
    assert [(step["model"], step["confidence"], step["outcome"]) for step in trail] == [
        ("mini", 0.1, "requeried"),
        ("mini", 0.2, "escalated"),
        ("dense", 0.8, "accepted"),
    ]
    assert told(reply)["rule"] == "named_role_escalated"
    assert told(reply)["tokens_beside"] == 30
    ids = [call.request.request_id for client in ingress.clients.values() for call in client.calls]
    assert len(set(ids)) == 3


async def test_all_attempts_are_in_one_trace(state_dir: Path, ingress: BareIngress) -> None:
    ingress.clients["mini"].behaviour = in_turn(says("first", 0.1), says("second", 0.2))
    ingress.clients["dense"].behaviour = says("third", 0.8)
    reply = await ingress.post(CHAT, chat())
    parents = [call.request.trace_headers["traceparent"] for call in ingress.clients["mini"].calls]
    parents += [call.request.trace_headers["traceparent"] for call in ingress.clients["dense"].calls]
    assert {parent.split("-")[1] for parent in parents} == {reply.headers["x-pointsman-trace-id"]}
    assert len({parent.split("-")[2] for parent in parents}) == 3


async def test_deterministic_answers_are_not_asked_for_again(ingress: BareIngress) -> None:
    ingress.clients["mini"].behaviour = says("same", 0.1)
    ingress.clients["dense"].behaviour = says("other", 0.8)
    await ingress.post(CHAT, chat(temperature=0))
    assert temperatures(ingress.clients["mini"]) == [0]
    assert temperatures(ingress.clients["dense"]) == [0]


@pytest.mark.parametrize("stream", [False, True])
async def test_when_nobody_is_sure_the_passages_answer(ingress: BareIngress, stream: bool) -> None:
    for name in ("mini", "dense"):
        ingress.clients[name].behaviour = says("a wild guess of mine", 0.1, early=0.1)
    passages = [{"id": "doc-7", "text": "Paris is the capital.", "score": 0.9}]
    reply = await ingress.post(CHAT, chat(stream=stream, pointsman={"passages": passages}))
    assert reply.status == 200
    assert b"Paris is the capital. [doc-7]" in reply.body and b"guess" not in reply.body
    assert told(reply)["citations"] == ["doc-7"]
    assert len(told(reply)["trail"]) == 3 and told(reply)["trail"][-1]["outcome"] == "template"
    assert reply.whole and (not stream or reply.body.endswith(b"data: [DONE]\n\n"))
    empty = await ingress.post(CHAT, chat())
    assert text_of(empty) == NOTHING_GROUNDED


async def test_without_grounding_the_best_answer_leaves_and_is_said_to_be_doubtful(ingress: BareIngress) -> None:
    ingress.clients["mini"].behaviour = in_turn(says("first", 0.1), says("second", 0.5))
    ingress.clients["dense"].behaviour = says("third", 0.4)
    reply = await ingress.post(CHAT, chat(pointsman={"grounding": False}))
    assert text_of(reply) == "second"
    assert (told(reply)["confidence"], reply.headers["x-pointsman-model"]) == (0.5, "mini")
    assert [step["outcome"] for step in told(reply)["trail"]] == ["requeried", "best", "refused"]
    assert told(reply)["tokens_beside"] == 30


async def test_who_names_a_model_is_not_judged_unless_asked_for(ingress: BareIngress) -> None:
    ingress.clients["mini"].behaviour = says("guess", 0.1)
    reply = await ingress.post(CHAT, chat(model="mini"))
    assert text_of(reply) == "guess" and "trail" not in told(reply)
    assert not ingress.clients["mini"].calls[0].request.judge
    asked = await ingress.post(CHAT, chat(model="mini", pointsman={"retries": 1, "grounding": False}))
    assert len(told(asked)["trail"]) == 2
    off = await ingress.post(CHAT, chat(pointsman={"retries": 0}))
    assert "trail" not in told(off)


@pytest.mark.parametrize("ending", [die, refuses(500), refuses(429)])
async def test_a_further_attempt_that_fails_does_not_lose_what_there_is(
    ingress: BareIngress, ending: Behaviour
) -> None:
    ingress.clients["mini"].behaviour = says("first", 0.1)
    ingress.clients["dense"].behaviour = ending
    reply = await ingress.post(CHAT, chat(temperature=0, pointsman={"grounding": False}))
    assert (reply.status, text_of(reply)) == (200, "first")
    assert told(reply)["trail"][1]["outcome"] == "failed"


async def test_a_further_attempt_that_takes_too_long_does_not_either(
    ingress: BareIngress, monkeypatch: pytest.MonkeyPatch
) -> None:
    contracts = ingress.services.config.contracts
    monkeypatch.setitem(contracts, "fast", contracts["fast"].model_copy(update={"timeout_s": 0.5}))
    ingress.clients["mini"].behaviour = says("first", 0.1)
    calls = hang(ingress.clients["dense"])
    reply = await ingress.post(CHAT, chat(temperature=0, pointsman={"grounding": False}))
    assert (reply.status, text_of(reply)) == (200, "first")
    assert calls[0].cancelled
    assert "timeout" in told(reply)["trail"][1]["why"]


async def test_the_first_refusal_of_an_engine_is_the_callers(ingress: BareIngress) -> None:
    ingress.clients["mini"].behaviour = refuses(400)
    reply = await ingress.post(CHAT, chat())
    assert reply.status == 400
    assert ingress.clients["dense"].calls == []


async def test_a_lost_model_is_stood_in_for_and_judged(ingress: BareIngress) -> None:
    def last_breath(stream: TokenStream, call: ReplicaCall) -> None:
        ingress.clients["dense"].up = False
        stream.fail(ReplicaLostError("that died"))

    ingress.clients["dense"].behaviour = last_breath
    ingress.clients["sparse"].behaviour = says("stand-in", 0.9)
    reply = await ingress.post(CHAT, chat(model="strong"))
    assert text_of(reply) == "stand-in"
    assert reply.headers["x-pointsman-attempts"] == "2"


async def test_a_bad_start_of_a_stream_is_replaced_before_a_byte_is_seen(ingress: BareIngress) -> None:
    calls = hang(ingress.clients["mini"], event("never "), event("seen "), event("this "), early=0.1)
    ingress.clients["dense"].behaviour = says("what is seen instead", 0.7, early=0.9)
    reply = await ingress.post(CHAT, chat(stream=True, temperature=0))
    assert b"never" not in reply.body and b"instead" in reply.body and b": judged" not in reply.body
    assert told(reply)["confidence"] == 0.7
    assert [step["confidence"] for step in told(reply)["trail"]] == [0.1, 0.7]
    assert calls[0].cancelled
    assert reply.body.endswith(b"data: [DONE]\n\n")
    assert ingress.clients["mini"].calls[0].request.judge_tokens == 2


async def test_a_stream_that_is_not_judged_in_time_is_let_through(ingress: BareIngress) -> None:
    def slow(stream: TokenStream, call: ReplicaCall) -> None:
        for word in ("one ", "two ", "three ", "four "):
            stream.feed(event(word))
        asyncio.get_running_loop().call_later(0.02, lambda: stream.feed(event("five ")))
        asyncio.get_running_loop().call_later(
            0.03, lambda: stream.finish(EngineReply(200, b"", USAGE, "stop", confidence=sure(0.1)))
        )

    hang(ingress.clients["mini"])
    ingress.clients["mini"].behaviour = slow
    reply = await ingress.post(CHAT, chat(stream=True))
    assert b"one" in reply.body and b"five" in reply.body
    assert told(reply)["trail"][0]["why"] == "mini reported no confidence"
    assert told(reply)["confidence"] == 0.1


async def test_a_stream_that_ends_behind_the_gate_is_judged_whole(ingress: BareIngress) -> None:
    ingress.clients["mini"].behaviour = says("bad", 0.1)
    ingress.clients["dense"].behaviour = says("good", 0.9)
    reply = await ingress.post(CHAT, chat(stream=True, temperature=0))
    assert b"bad" not in reply.body and b"good" in reply.body


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_frees_the_attempt_under_way(ingress: BareIngress, stream: bool) -> None:
    ingress.clients["mini"].behaviour = says("bad", 0.1)
    calls = hang(ingress.clients["dense"], *((event("x"),) if stream else ()))
    task = asyncio.ensure_future(ingress.post(CHAT, chat(stream=stream, temperature=0)))
    await until(lambda: bool(calls), 3)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert calls[0].cancelled


async def test_leaving_frees_the_verifier(ingress: BareIngress) -> None:
    ingress.clients["mini"].behaviour = says("checked", 0.9)
    calls = hang(ingress.clients["dense"])
    task = asyncio.ensure_future(ingress.post(CHAT, chat(pointsman={"verify": {"verifier": True}})))
    await until(lambda: bool(calls), 3)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert calls[0].cancelled


async def test_a_key_is_charged_for_all_that_was_computed(state_dir: Path) -> None:
    minted = mint("a test", time.time(), secrets.token_bytes, tenant="acme")
    KeysFile(state_dir / "keys.jsonl").append(minted.record)
    async with bare_ingress(config(), state_dir) as ingress:
        ingress.clients["mini"].behaviour = says("first", 0.1)
        ingress.clients["dense"].behaviour = says("third", 0.8)
        bearer = {"authorization": f"Bearer {minted.key}"}
        reply = await ingress.post(CHAT, chat(), **bearer)
        assert len(told(reply)["trail"]) == 3
        usage = json.loads((await ingress.request("GET", "/v1/usage", **bearer)).body)
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (30, 15)


def waits(ingress: BareIngress, monkeypatch: pytest.MonkeyPatch, seconds: float, of_s: float) -> None:
    """Requests to `fast`, which allows `of_s` seconds, wait this long for their model."""
    contracts = ingress.services.config.contracts
    monkeypatch.setitem(contracts, "fast", contracts["fast"].model_copy(update={"timeout_s": of_s}))

    @asynccontextmanager
    async def queue(*_: object) -> AsyncIterator[None]:
        await asyncio.sleep(seconds)
        yield

    monkeypatch.setattr(ingress.services.admission, "enter", queue)


async def test_time_in_the_queue_counts(ingress: BareIngress, monkeypatch: pytest.MonkeyPatch) -> None:
    waits(ingress, monkeypatch, 1.5, of_s=2.5)
    ingress.clients["mini"].behaviour = says("first", 0.1)
    hang(ingress.clients["dense"])
    reply = await ingress.post(CHAT, chat(temperature=0, pointsman={"grounding": False}))
    assert (reply.status, text_of(reply)) == (200, "first")


async def test_who_waits_for_all_of_its_time_is_told_when_to_come_back(
    ingress: BareIngress, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits(ingress, monkeypatch, 9.0, of_s=0.1)
    reply = await ingress.post(CHAT, chat())
    assert (reply.status, reply.error["code"]) == (503, "saturated")
    assert int(reply.headers["retry-after"]) >= 1
    assert ingress.clients["mini"].calls == []


async def test_without_retries_confidence_decides_nothing(ingress: BareIngress) -> None:
    ingress.clients["mini"].behaviour = says("42", 0.1)
    reply = await ingress.post(CHAT, chat(pointsman={"retries": 0, "verify": {"regex": "^42$"}}))
    assert (text_of(reply), told(reply)["verified"], told(reply)["trail"][0]["outcome"]) == ("42", True, "accepted")
