"""Scripted replicas that are more or less sure of what they say, and requests to them."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Generator
from pathlib import Path
from typing import Any

from cluster.config.cluster import ClusterConfig
from cluster.config.feedback import FeedbackConfig
from cluster.config.load import parse_config
from cluster.routing.confidence import TokenConfidence
from deployments.channel.stream import TokenStream
from deployments.engines.protocol import EngineReply, TokenUsage, judged_event
from deployments.replica.spec import ReplicaCall
from tests.unit.ingress.bare_ingress import Behaviour, ScriptedClient

ROOT = Path(__file__).parents[3]
CHAT = "/v1/chat/completions"
USAGE = TokenUsage(prompt_tokens=10, completion_tokens=5)


def config(**feedback: Any) -> ClusterConfig:
    made = parse_config((ROOT / "infra" / "clusters" / "local.yaml").read_text(), "local.yaml")
    asked = {"enabled": True, "confidence_threshold": 0.6, "escalate_to": ["strong"], "gate_tokens": 2, **feedback}
    routing = made.routing.model_copy(update={"feedback": FeedbackConfig.model_validate(asked)})
    return made.model_copy(update={"routing": routing})


def sure(score: float) -> TokenConfidence:
    """What an engine tells of an answer that it is this sure of, 0 to 1."""
    return TokenConfidence(score, mean_logprob=math.log(score), weakest_window=math.log(score), tokens=5)


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
