"""The sliding window of a real engine: what leaves, what is said of it, and that it never goes over."""

from __future__ import annotations

import json

import pytest

from cluster.api.errors import ApiError
from deployments.engines.protocol import Endpoint
from deployments.engines.vllm_engine import VllmEngine
from tests.integration.dense_engine import MAX_MODEL_LEN, WEATHER, Call, answer_of, long_chat, prompt_ids

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # Importing vLLM and its dependencies warns about many things that are not ours.
    pytest.mark.filterwarnings("ignore"),
]

CANARY = "canaryword"


@pytest.fixture
def windowed(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> int:
    from deployments.engines.vllm_window import ChatWindow

    window = 200
    assert engine._layer is not None
    monkeypatch.setattr(engine, "_window", ChatWindow(engine._layer.renderer, window, MAX_MODEL_LEN))
    return window


async def test_window_bounds_prompt_and_completion(call: Call, windowed: int) -> None:
    chat = long_chat(30)
    reply = await call.run(Endpoint.CHAT, messages=chat, ignore_eos=True, temperature=0)
    usage = reply.usage
    assert reply.status == 200
    # An open `max_tokens` fills the window and no more.
    assert usage.prompt_tokens + usage.completion_tokens == windowed
    assert usage.completion_tokens >= windowed // 4
    assert usage.truncated_turns > 40
    assert usage.truncated_tokens > 500
    asked = await call.run(Endpoint.CHAT, messages=chat, ignore_eos=True, max_tokens=100, tools=[WEATHER])
    assert asked.status == 400
    asked = await call.run(Endpoint.CHAT, messages=chat, ignore_eos=True, max_tokens=100)
    assert asked.usage.completion_tokens == 100
    assert asked.usage.prompt_tokens <= 100
    assert asked.usage.truncated_turns > usage.truncated_turns


async def test_window_counts_exactly(engine: VllmEngine, windowed: int) -> None:
    body = {"model": "dense", "messages": long_chat(12), "max_tokens": 60}
    kept, truncated = await engine._window.apply(Endpoint.CHAT, body)
    whole = [len(await prompt_ids(engine, messages=body["messages"])), len(await prompt_ids(engine, **kept))]
    assert whole[0] - whole[1] == truncated.truncated_tokens
    assert len(body["messages"]) - len(kept["messages"]) == truncated.truncated_turns
    assert whole[1] <= windowed - 60
    assert kept["messages"][0]["role"] == "system"
    assert kept["messages"][-1] == body["messages"][-1]
    # One group more would not have fit.
    group = body["messages"][-len(kept["messages"]) :]
    assert len(await prompt_ids(engine, messages=[body["messages"][0], *group])) > windowed - 60


async def test_window_is_never_silent_in_a_stream(call: Call, windowed: int) -> None:
    chat = long_chat(30)
    reply = await call.run(Endpoint.CHAT, messages=chat, max_tokens=5, ignore_eos=True, temperature=0, stream=True)
    assert reply.status == 200
    lost = {"truncated_turns": reply.usage.truncated_turns, "truncated_tokens": reply.usage.truncated_tokens}
    assert lost["truncated_turns"] > 40
    # Said once, and at the beginning.
    assert [chunk.get("pointsman") for chunk in call.chunks] == [lost] + [None] * (len(call.chunks) - 1)


async def test_window_leaves_what_fits_alone(call: Call, windowed: int) -> None:
    reply = await call.run(Endpoint.CHAT, messages=long_chat(1), max_tokens=5, stream=True)
    assert not any("pointsman" in chunk for chunk in call.chunks)
    assert (reply.usage.truncated_turns, reply.usage.truncated_tokens) == (0, 0)


async def test_window_refuses_a_last_turn_that_is_too_long(call: Call, windowed: int) -> None:
    reply = await call.chat(f"{CANARY} " * 300, max_tokens=20)
    error = json.loads(reply.body)["error"]
    assert (reply.status, error["code"]) == (400, "context_length_exceeded")
    assert str(windowed) in error["message"]
    assert CANARY not in reply.body.decode()
    greedy = await call.chat("Hi", max_tokens=windowed)
    assert (greedy.status, json.loads(greedy.body)["error"]["param"]) == (400, "max_tokens")


async def test_window_of_plain_prompts_slides_from_the_left(call: Call, windowed: int, engine: VllmEngine) -> None:
    text = "".join(f" word{number}" for number in range(300))
    reply = await call.run(Endpoint.COMPLETION, prompt=[text, "short"], max_tokens=50, echo=True, ignore_eos=True)
    first, second = answer_of(reply)["choices"]
    assert "word299" in first["text"]
    assert "word0 " not in first["text"]
    assert second["text"].startswith("short")
    assert reply.usage.truncated_tokens > 100
    assert reply.usage.completion_tokens == 100
    with pytest.raises(ApiError, match="`max_tokens` is 500"):
        await engine._window.apply(Endpoint.COMPLETION, {"prompt": "x", "max_tokens": 500})
