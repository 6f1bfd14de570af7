"""Streams whose beginning was not good enough: kept until something better is there, and freed then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deployments.channel.stream import TokenStream
from deployments.engines.protocol import EngineReply, judged_event
from deployments.ingress import dispatch
from deployments.replica.spec import ReplicaCall
from tests.unit.ingress.bare_ingress import BareIngress, Behaviour, bare_ingress, die
from tests.unit.ingress.judged import CHAT, USAGE, chat, config, event, hang, refuses, says, sure, told
from tests.waiting import until

NO_TEMPLATE: Any = {"grounding": False}


@pytest.fixture
async def ingress(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BareIngress]:
    monkeypatch.setattr(dispatch, "REPLY_GRACE_S", 0.05)
    async with bare_ingress(config(), state_dir) as made:
        yield made


def doubtful(stream: TokenStream, call: ReplicaCall) -> None:
    """Its beginning is not good enough, and the rest takes a while."""
    stream.feed(judged_event(sure(0.2)))
    for word in ("the ", "first ", "one "):
        stream.feed(event(word))
    loop = asyncio.get_running_loop()
    loop.call_later(0.05, lambda: stream.feed(event("goes on")))
    loop.call_later(0.1, lambda: stream.finish(EngineReply(200, b"", USAGE, "stop", confidence=sure(0.3))))


@pytest.mark.parametrize("ending", [die, refuses(500), refuses(429)])
@pytest.mark.parametrize("more", [{"pointsman": NO_TEMPLATE}, {"response_format": {"type": "json_object"}}])
async def test_a_further_attempt_that_fails_does_not_lose_the_stream(
    ingress: BareIngress, ending: Behaviour, more: dict[str, Any]
) -> None:
    calls = hang(ingress.clients["mini"])
    ingress.clients["mini"].behaviour = doubtful
    ingress.clients["dense"].behaviour = ending
    reply = await ingress.post(CHAT, chat(stream=True, temperature=0, **more))
    assert reply.status == 200
    for word in ("the ", "first ", "one ", "goes on"):
        assert reply.body.count(event(word)) == 1
    assert reply.body.endswith(b"data: [DONE]\n\n")
    assert [step["outcome"] for step in told(reply)["trail"]] == ["best", "failed"]
    assert (reply.headers["x-pointsman-model"], told(reply)["confidence"]) == ("mini", 0.3)
    assert len(calls) == 1


async def test_the_better_of_two_doubtful_streams_leaves(ingress: BareIngress) -> None:
    first, second = hang(ingress.clients["mini"]), hang(ingress.clients["dense"], *[event("worse ")] * 3, early=0.1)
    ingress.clients["mini"].behaviour = doubtful
    reply = await ingress.post(CHAT, chat(stream=True, temperature=0, pointsman=NO_TEMPLATE))
    assert b"goes on" in reply.body and b"worse" not in reply.body
    assert reply.headers["x-pointsman-attempts"] == "2"
    assert second[0].cancelled
    assert len(first) == 1
    assert [step["outcome"] for step in told(reply)["trail"]] == ["best", "refused"]


async def test_a_better_stream_frees_the_one_that_was_kept(ingress: BareIngress) -> None:
    calls = hang(ingress.clients["mini"], *[event("kept ")] * 3, early=0.2)
    ingress.clients["dense"].behaviour = says("what is better by far", 0.9, early=0.9)
    reply = await ingress.post(CHAT, chat(stream=True, temperature=0, pointsman=NO_TEMPLATE))
    assert b"better" in reply.body and b"kept" not in reply.body
    assert calls[0].cancelled


async def test_leaving_frees_the_stream_that_was_kept(ingress: BareIngress) -> None:
    kept = hang(ingress.clients["mini"], *[event("kept ")] * 3, early=0.2)
    hung = hang(ingress.clients["dense"])
    task = asyncio.ensure_future(ingress.post(CHAT, chat(stream=True, temperature=0, pointsman=NO_TEMPLATE)))
    await until(lambda: bool(hung), 3)
    await asyncio.sleep(0)
    assert not kept[0].cancelled
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert kept[0].cancelled and hung[0].cancelled


async def test_another_stream_is_begun_only_if_its_whole_length_may_be(state_dir: Path) -> None:
    async with bare_ingress(config(max_tokens=60), state_dir) as ingress:
        hang(ingress.clients["mini"])
        ingress.clients["mini"].behaviour = doubtful
        body = chat(stream=True, temperature=0, pointsman=NO_TEMPLATE, max_tokens=50)
        reply = await ingress.post(CHAT, body)
        assert b"goes on" in reply.body
        assert ingress.clients["dense"].calls == []
        assert "would pass 60 tokens" in told(reply)["trail"][0]["why"]
