"""A real engine that says how sure it was of its tokens."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from deployments.engines.protocol import Endpoint, EngineRequest, split_judged
from deployments.engines.vllm_engine import VllmEngine
from tests.integration.dense_engine import Call, answer_of, user

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # Importing vLLM and its dependencies warns about many things that are not ours.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(300),
]


def judged(answer: dict[str, Any]) -> list[float]:
    return [token["logprob"] for token in answer["choices"][0]["logprobs"]["content"]]


async def test_a_judged_answer_is_the_same_and_says_how_sure_the_model_was(engine: VllmEngine, call: Call) -> None:
    body = {"model": "dense", "messages": [user("What is the capital of France?")], "max_tokens": 12, "temperature": 0}
    told = answer_of(await call.chat("What is the capital of France?", max_tokens=12, logprobs=True, top_logprobs=2))
    logprobs = judged(told)
    for asked, shown in ((None, None), (2, 2)):
        more = {} if asked is None else {"logprobs": True, "top_logprobs": asked}
        request = EngineRequest(uuid.uuid4().hex, Endpoint.CHAT, {**body, **more}, judge=True)
        reply = await engine.run(request, lambda _: None)
        assert reply.confidence is not None
        assert reply.confidence.tokens == len(logprobs) == reply.usage.completion_tokens
        assert reply.confidence.mean_logprob == pytest.approx(sum(logprobs) / len(logprobs), abs=0.02)
        assert 0 < reply.confidence.score <= 1
        choice = answer_of(reply)["choices"][0]
        assert choice["message"]["content"] == told["choices"][0]["message"]["content"]
        # The caller sees what was asked for, and no more.
        if shown is None:
            assert choice["logprobs"] is None
        else:
            assert {len(token["top_logprobs"]) for token in choice["logprobs"]["content"]} == {shown}
    assert (await call.chat("Hello", max_tokens=2)).confidence is None


async def test_a_judged_stream_tells_once_after_the_first_tokens(engine: VllmEngine) -> None:
    body = {"model": "dense", "messages": [user("Name three colours.")], "max_tokens": 20, "ignore_eos": True}
    events: list[bytes] = []
    request = EngineRequest(
        uuid.uuid4().hex, Endpoint.CHAT, {**body, "stream": True, "temperature": 0}, judge=True, judge_tokens=6
    )
    reply = await engine.run(request, events.append)
    early = [(at, told) for at, data in enumerate(events) if (told := split_judged(data)[1]) is not None]
    ((at, told),) = early
    assert 6 <= told.tokens <= 8
    assert at < len(events) - 8
    assert reply.confidence is not None
    assert reply.confidence.tokens == 20
    assert b'"logprob":' not in b"".join(events)
