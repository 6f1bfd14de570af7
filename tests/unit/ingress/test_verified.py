"""Answers that are checked, and two-stage answers, with scripted replicas behind the ingress."""

from __future__ import annotations

import math
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deployments.channel.stream import TokenStream
from deployments.engines.protocol import EngineReply
from deployments.ingress import dispatch
from deployments.replica.spec import ReplicaCall
from tests.unit.ingress.bare_ingress import BareIngress, Behaviour, bare_ingress
from tests.unit.ingress.judged import (
    CHAT,
    USAGE,
    chat,
    config,
    event,
    in_turn,
    refuses,
    says,
    sure,
    text_of,
    told,
)


@pytest.fixture
async def ingress(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BareIngress]:
    monkeypatch.setattr(dispatch, "REPLY_GRACE_S", 0.05)
    async with bare_ingress(config(), state_dir) as made:
        yield made


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("verify", "wrong", "right"),
    [
        ({"regex": "^[0-9]+$"}, "many", "42"),
        ({"exact": "yes"}, "no", "Yes"),
        ({"json_schema": {"type": "object", "required": ["a"]}}, "{}", '{"a":1}'),
    ],
)
async def test_what_is_not_verified_does_not_leave(
    ingress: BareIngress, stream: bool, verify: dict[str, Any], wrong: str, right: str
) -> None:
    def exactly(text: str) -> Behaviour:
        def behave(stream: TokenStream, call: ReplicaCall) -> None:
            if call.request.body.get("stream"):
                stream.feed(event(text))
                stream.finish(EngineReply(200, b"", USAGE, "stop", confidence=sure(0.99)))
            else:
                says(text, 0.99)(stream, call)

        return behave

    ingress.clients["mini"].behaviour = exactly(wrong)
    ingress.clients["dense"].behaviour = exactly(right)
    reply = await ingress.post(CHAT, chat(stream=stream, temperature=0, pointsman={"verify": verify}))
    assert reply.headers["x-pointsman-model"] == "dense"
    assert told(reply)["verified"] is True
    assert told(reply)["trail"][0]["verdict"]["ok"] is False


async def test_a_pattern_that_cannot_be_used_is_a_mistake_of_the_caller(ingress: BareIngress) -> None:
    reply = await ingress.post(CHAT, chat(pointsman={"verify": {"regex": "(?=a)b"}}))
    assert (reply.status, reply.error["param"]) == (400, "pointsman.verify.regex")
    assert all(not client.calls for client in ingress.clients.values())


def yes(probability: float) -> Any:
    tops = [{"token": "yes", "logprob": math.log(probability)}, {"token": "no", "logprob": math.log(1 - probability)}]
    return {"content": [{"top_logprobs": tops}]}


async def test_a_verifier_is_asked_and_charged(ingress: BareIngress) -> None:
    ingress.clients["mini"].behaviour = says("an answer", 0.9)
    ingress.clients["dense"].behaviour = says("yes", logprobs=yes(0.9))
    reply = await ingress.post(CHAT, chat(pointsman={"verify": {"verifier": True}}))
    assert text_of(reply) == "an answer"
    assert (told(reply)["verified"], told(reply)["verdict"]["score"]) == (True, 0.9)
    assert told(reply)["tokens_beside"] == 15
    asked = ingress.clients["dense"].calls[0].request.body
    assert "an answer" in str(asked["messages"]) and asked["max_tokens"] == 1


def two_stages(**more: Any) -> dict[str, Any]:
    return chat(model="auto", pointsman={"two_stage": True}, **more)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("probability", "leaves", "model"), [(0.9, b"well worded", "sparse"), (0.2, b"facts", "dense")]
)
async def test_the_wording_leaves_only_if_it_says_the_same(
    ingress: BareIngress, stream: bool, probability: float, leaves: bytes, model: str
) -> None:
    ingress.clients["dense"].behaviour = in_turn(says("facts", 0.9), says("yes", logprobs=yes(probability)))
    ingress.clients["sparse"].behaviour = says("well worded", 0.9)
    reply = await ingress.post(CHAT, two_stages(stream=stream))
    assert reply.status == 200 and leaves in reply.body
    assert reply.headers["x-pointsman-model"] == model
    assert told(reply)["tokens_beside"] == 30
    rewriting = ingress.clients["sparse"].calls[0].request.body
    assert "facts" in str(rewriting["messages"]) and "Hello" not in str(rewriting["messages"])
    assert not rewriting.get("stream")
    assert reply.body.endswith(b"data: [DONE]\n\n") is stream


async def test_the_facts_leave_if_nobody_can_word_them(ingress: BareIngress) -> None:
    ingress.clients["dense"].behaviour = says("facts", 0.9)
    ingress.clients["sparse"].behaviour = refuses(500)
    reply = await ingress.post(CHAT, two_stages())
    assert (reply.status, text_of(reply)) == (200, "facts")
    assert told(reply)["trail"][-1]["outcome"] == "refused"


@pytest.mark.parametrize("more", [{"n": 2}, {"response_format": {"type": "json_object"}}, {"logprobs": True}])
async def test_two_stages_of_what_has_no_two_are_refused(ingress: BareIngress, more: dict[str, Any]) -> None:
    reply = await ingress.post(CHAT, two_stages(**more))
    assert (reply.status, reply.error["param"]) == (400, "pointsman.two_stage")
    named = await ingress.post(CHAT, {**two_stages(), "model": "mini"})
    assert (named.status, named.error["param"]) == (400, "model")


async def test_an_operators_hook_decides_on_what_is_judged(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("a_hook_of_feedback")
    module.check = lambda question, answer: question == "Hello" and answer == "good"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    async with bare_ingress(config(hook="a_hook_of_feedback:check"), state_dir) as ingress:
        ingress.clients["mini"].behaviour = says("bad", 0.9)
        ingress.clients["dense"].behaviour = says("good", 0.9)
        reply = await ingress.post(CHAT, chat(temperature=0))
    assert text_of(reply) == "good"
    assert [step["verdict"]["name"] for step in told(reply)["trail"]] == ["hook", "hook"]


async def test_a_verifier_that_was_taken_out_of_the_config_verifies_nothing(
    ingress: BareIngress, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = ingress.health.models
    ingress.clients["mini"].behaviour = says("an answer", 0.9)
    known = {name: state for name, state in models().items() if name == "mini"}
    monkeypatch.setattr(ingress.health, "models", lambda: known)
    asked = {"verify": {"verifier": True}, "grounding": False, "retries": 0}
    reply = await ingress.post(CHAT, chat(pointsman=asked))
    assert (reply.status, told(reply)["verified"]) == (200, False)
    assert "no model of the role" in told(reply)["verdict"]["reason"]


async def test_checks_count_against_the_tokens_of_all_attempts(state_dir: Path) -> None:
    asked = {"verify": {"verifier": True}, "grounding": False}
    for max_tokens, asks, why in ((20, 0, "asking the verifier would pass 20 tokens"), (200, 1, "below 0.5")):
        async with bare_ingress(config(max_tokens=max_tokens), state_dir) as ingress:
            ingress.clients["mini"].behaviour = says("an answer", 0.9)
            ingress.clients["dense"].behaviour = says("no", logprobs=yes(0.1))
            reply = await ingress.post(CHAT, chat(pointsman={**asked, "retries": 0}))
            assert why in told(reply)["verdict"]["reason"]
            assert len(ingress.clients["dense"].calls) == asks


async def test_two_stages_keep_to_the_bound_of_attempts(state_dir: Path) -> None:
    async with bare_ingress(config(max_attempts=1), state_dir) as ingress:
        reply = await ingress.post(CHAT, two_stages())
        assert (reply.status, reply.error["param"]) == (400, "pointsman.two_stage")
        assert "allows one" in reply.error["message"]
    async with bare_ingress(config(max_attempts=2, template=False), state_dir) as ingress:
        ingress.clients["dense"].behaviour = in_turn(says("doubtful facts", 0.1), says("yes", logprobs=yes(0.9)))
        ingress.clients["sparse"].behaviour = says("well worded", 0.9)
        reply = await ingress.post(CHAT, two_stages())
        assert text_of(reply) == "well worded"
        assert [step["outcome"] for step in told(reply)["trail"]] == ["best", "reworded"]


async def test_two_stages_keep_to_the_bound_of_tokens(state_dir: Path) -> None:
    async with bare_ingress(config(max_tokens=40), state_dir) as ingress:
        ingress.clients["dense"].behaviour = says("facts", 0.9)
        reply = await ingress.post(CHAT, two_stages())
        assert text_of(reply) == "facts"
        assert "could pass 40 tokens" in told(reply)["trail"][-1]["why"]
        assert ingress.clients["sparse"].calls == []
