"""Requests whose answers are judged, with scripted replicas behind the ingress."""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import sys
import time
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cluster.config.cluster import ClusterConfig
from cluster.config.feedback import FeedbackConfig
from cluster.config.load import parse_config
from cluster.keys import mint
from cluster.routing.confidence import TOP, TokenConfidence
from cluster.routing.template import NOTHING_GROUNDED
from deployments.access.keys_file import KeysFile
from deployments.channel.stream import ReplicaLostError, TokenStream
from deployments.engines.protocol import EngineReply, TokenUsage, judged_event
from deployments.ingress import dispatch
from deployments.replica.spec import ReplicaCall
from tests.unit.ingress.bare_ingress import BareIngress, Behaviour, ScriptedClient, bare_ingress, die
from tests.waiting import until

ROOT = Path(__file__).parents[3]
CHAT = "/v1/chat/completions"
USAGE = TokenUsage(prompt_tokens=10, completion_tokens=5)


def config(**feedback: Any) -> ClusterConfig:
    made = parse_config((ROOT / "infra" / "clusters" / "local.yaml").read_text(), "local.yaml")
    asked = {"enabled": True, "confidence_threshold": 0.6, "escalate_to": ["strong"], "gate_tokens": 2, **feedback}
    routing = made.routing.model_copy(update={"feedback": FeedbackConfig.model_validate(asked)})
    return made.model_copy(update={"routing": routing})


def sure(score: float) -> TokenConfidence:
    """A confidence that comes to `score`."""
    return TokenConfidence(5, math.log(score), math.log(score), score, (1 - score) * math.log(TOP + 1))


def event(text: str) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":%s}}]}\n\n' % json.dumps(text).encode()


def says(text: str, score: float | None = None, *, early: float | None = None, logprobs: Any = None) -> Behaviour:
    """A replica that says `text`, sure of it by `score`, and by `early` of its beginning."""

    def behave(stream: TokenStream, call: ReplicaCall) -> None:
        confidence = None if score is None else sure(score)
        if call.request.body.get("stream"):
            words = text.split(" ")
            if early is not None:
                stream.feed(judged_event(sure(early)))
            for word in words:
                stream.feed(event(word + " "))
            stream.finish(EngineReply(200, b"", USAGE, "stop", confidence=confidence))
            return
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": logprobs}
        body = json.dumps({"model": call.request.body["model"], "choices": [choice]}).encode()
        stream.finish(EngineReply(200, body, USAGE, "stop", confidence=confidence))

    return behave


def in_turn(*behaviours: Behaviour) -> Behaviour:
    left = list(behaviours)

    def behave(stream: TokenStream, call: ReplicaCall) -> None:
        now = left.pop(0) if len(left) > 1 else left[0]
        now(stream, call)

    return behave


def refuses(status: int) -> Behaviour:
    return lambda stream, call: stream.finish(EngineReply(status, b'{"error":{"code":"x"}}'))


class Hanging:
    """Serve's side of a call that does not end until it is cancelled."""

    def __init__(self) -> None:
        self.cancelled = False

    def __await__(self) -> Generator[object, None, object]:
        yield from asyncio.Event().wait().__await__()
        return None

    def cancel(self) -> None:
        self.cancelled = True


def hang(client: ScriptedClient, *events: bytes, early: float | None = None) -> list[Hanging]:
    """From now on, calls of `client` send `events` and then nothing."""
    made: list[Hanging] = []
    call_of = client.call

    def call(call: ReplicaCall) -> Any:
        call_of(call)
        made.append(Hanging())
        return made[-1]

    def behave(stream: TokenStream, _: ReplicaCall) -> None:
        if early is not None:
            stream.feed(judged_event(sure(early)))
        for data in events:
            stream.feed(data)

    client.behaviour = behave
    client.call = call  # type: ignore[method-assign]
    return made


@pytest.fixture
async def ingress(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BareIngress]:
    monkeypatch.setattr(dispatch, "REPLY_GRACE_S", 0.05)
    async with bare_ingress(config(), state_dir) as made:
        yield made


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "fast", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, **more}


def told(reply: Any) -> dict[str, Any]:
    if reply.headers["content-type"].startswith("text/event-stream"):
        comment = next(line for line in reply.body.split(b"\n") if line.startswith(b": pointsman "))
        found: dict[str, Any] = json.loads(comment.removeprefix(b": pointsman "))
        return found
    answered: dict[str, Any] = json.loads(reply.body)["pointsman"]
    return answered


def text_of(reply: Any) -> str:
    return str(json.loads(reply.body)["choices"][0]["message"]["content"])


def temperatures(client: ScriptedClient) -> list[Any]:
    return [call.request.body.get("temperature") for call in client.calls]


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
