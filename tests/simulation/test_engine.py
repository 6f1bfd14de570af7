from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cluster.config.engine import EngineConfig, EngineType, SimulatedConfig
from deployments.engines.protocol import Endpoint, EngineDeadError, EngineReply, EngineRequest
from deployments.engines.simulated import SimulatedEngine
from deployments.engines.simulated.clock import VirtualClock


@asynccontextmanager
async def running(clock: VirtualClock | None = None, **changes: object) -> AsyncIterator[SimulatedEngine]:
    settings = SimulatedConfig(kv_blocks=64, kv_block_tokens=16).model_copy(update=changes)
    config = EngineConfig(type=EngineType.SIMULATED, simulated=settings, max_num_seqs=8)
    engine = SimulatedEngine("dense", config, clock or VirtualClock())
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def ask(
    engine: SimulatedEngine, endpoint: Endpoint = Endpoint.CHAT, *, name: str = "r1", **body: object
) -> tuple[EngineReply, list[dict[str, Any]]]:
    """The reply and the events."""
    if endpoint is Endpoint.CHAT:
        body = {"messages": [{"role": "user", "content": "Tell me a story."}]} | body
    sent: list[bytes] = []
    reply = await engine.run(EngineRequest(name, endpoint, body), sent.append)  # type: ignore[arg-type]
    return reply, [json.loads(event[6:]) for event in b"".join(sent).split(b"\n\n") if event]


async def test_a_plain_answer_says_that_it_is_simulated() -> None:
    async with running() as engine:
        reply, events = await ask(engine, max_tokens=5)
    body = json.loads(reply.body)
    assert engine.kind == "simulated"
    assert events == []
    assert (reply.status, reply.finish_reason) == (200, "length")
    assert body["model"] == "dense (simulated)"
    assert body["system_fingerprint"] == "simulated"
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["logprobs"] is None
    assert len(body["choices"][0]["message"]["content"].split()) == 5
    assert all(word.startswith("sim") for word in body["choices"][0]["message"]["content"].split())
    assert body["usage"]["completion_tokens"] == 5 == reply.usage.completion_tokens
    assert body["usage"]["total_tokens"] == reply.usage.prompt_tokens + 5


@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.COMPLETION])
async def test_a_stream_says_what_the_plain_answer_says(endpoint: Endpoint) -> None:
    body: dict[str, object] = {"max_tokens": 6}
    if endpoint is Endpoint.COMPLETION:
        body["prompt"] = "Once upon"
    async with running() as engine:
        plain, _ = await ask(engine, endpoint, **body)
        reply, events = await ask(engine, endpoint, stream=True, stream_options={"include_usage": True}, **body)
    whole = json.loads(plain.body)["choices"][0]
    text = ""
    for event in events:
        assert event["model"] == "dense (simulated)"
        for choice in event["choices"]:
            text += choice["delta"].get("content", "") if endpoint is Endpoint.CHAT else choice["text"]
    assert text == (whole["message"]["content"] if endpoint is Endpoint.CHAT else whole["text"])
    assert [e["choices"][0]["finish_reason"] for e in events if e["choices"]][-1] == "length"
    assert events[-1]["usage"]["completion_tokens"] == 6
    assert reply.body == b""
    assert reply.finish_reason == "length"


async def test_same_seed_same_answer_other_seed_other_answer() -> None:
    texts = []
    for seed in (1, 1, 2):
        async with running(seed=seed) as engine:
            reply, _ = await ask(engine, max_tokens=8)
            texts.append(json.loads(reply.body)["choices"][0]["message"]["content"])
    assert texts[0] == texts[1] != texts[2]


async def test_choices_differ_unless_greedy() -> None:
    async with running() as engine:
        warm, _ = await ask(engine, max_tokens=4, n=3, temperature=1.0)
        cold, _ = await ask(engine, max_tokens=4, n=3, temperature=0)
        seeded, _ = await ask(engine, max_tokens=4, n=3, temperature=1.0, seed=9)
    texts = [[c["message"]["content"] for c in json.loads(r.body)["choices"]] for r in (warm, cold, seeded)]
    assert len(set(texts[0])) == 3
    assert len(set(texts[1])) == 1
    assert not set(texts[0]) & set(texts[2])
    assert warm.usage.completion_tokens == 12


async def test_stop_sequences_end_an_answer() -> None:
    async with running() as engine:
        whole, _ = await ask(engine, max_tokens=20)
        words = json.loads(whole.body)["choices"][0]["message"]["content"].split()
        cut, _ = await ask(engine, max_tokens=20, stop=[words[4]])
        streamed, events = await ask(engine, max_tokens=20, stop=words[4], stream=True)
        assert engine.stats().kv_usage == 0.0
    assert json.loads(cut.body)["choices"][0]["message"]["content"].split() == words[:4]
    assert cut.finish_reason == streamed.finish_reason == "stop"
    assert cut.usage.completion_tokens == 5
    assert "".join(e["choices"][0]["delta"]["content"] for e in events).split() == words[:4]


async def test_an_answer_without_a_limit_ends_by_itself() -> None:
    async with running() as engine:
        reply, _ = await ask(engine)
    assert reply.finish_reason == "stop"
    assert reply.usage.completion_tokens == 256


async def test_time_follows_the_costs() -> None:
    clock = VirtualClock()
    async with running(clock, prefill_tokens_per_s=1000.0, decode_step_base_s=0.02) as engine:
        reply, _ = await ask(engine, max_tokens=11)
    expected = 0.02 + reply.usage.prompt_tokens / 1000 + 10 * 0.021
    assert clock.now() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"max_tokens": 100_000}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "text": "secret"}]}]}, "messages"),
        ({"messages": []}, "messages"),
        ({"n": 0}, "n"),
    ],
)
async def test_what_needs_a_real_model_is_refused_by_name(body: dict[str, object], param: str) -> None:
    async with running() as engine:
        reply, events = await ask(engine, stream=True, **body)
        assert engine.stats().running == engine.stats().waiting == 0
    error = json.loads(reply.body)["error"]
    assert (reply.status, error["param"], events) == (400, param, [])
    assert "secret" not in error["message"]


async def test_embeddings_and_empty_prompts_are_refused() -> None:
    async with running() as engine:
        assert (await ask(engine, Endpoint.EMBEDDING, input="x"))[0].status == 400
        assert (await ask(engine, Endpoint.COMPLETION, prompt=""))[0].status == 400
        assert (await ask(engine, Endpoint.COMPLETION, prompt=[]))[0].status == 400


async def test_prompts_of_every_form_are_served() -> None:
    async with running() as engine:
        for prompt, choices in (("a", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1], [2, 3]], 2)):
            reply, _ = await ask(engine, Endpoint.COMPLETION, prompt=prompt, max_tokens=2)
            assert len(json.loads(reply.body)["choices"]) == choices
            assert reply.usage.completion_tokens == 2 * choices


async def test_cancelling_frees_the_blocks_at_once() -> None:
    clock = VirtualClock()
    async with running(clock) as engine:
        tasks = [asyncio.create_task(ask(engine, name=f"r{n}", max_tokens=100, stream=True)) for n in range(12)]
        await clock.sleep(0.5)
        assert engine.stats().kv_usage > 0
        assert (engine.stats().running, engine.stats().waiting) == (8, 4)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert engine.stats().kv_usage == 0.0
        assert engine.stats().running == engine.stats().waiting == 0
        assert (await ask(engine, max_tokens=2))[0].status == 200


async def test_a_chat_that_goes_on_finds_its_prefix() -> None:
    async with running() as engine:
        first = {"role": "user", "content": "Tell me everything about lighthouses, at length and in order."}
        reply, _ = await ask(engine, messages=[first], max_tokens=40)
        answer = json.loads(reply.body)["choices"][0]["message"]["content"]
        turns = [first, {"role": "assistant", "content": answer}, {"role": "user", "content": "Go on."}]
        again, _ = await ask(engine, messages=turns, max_tokens=2)
    assert again.usage.cached_tokens >= 16
    assert engine.stats().prefix_hits == again.usage.cached_tokens


async def test_tenants_find_no_prefix_of_each_other() -> None:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "lighthouse " * 60}], "max_tokens": 2}
    async with running() as engine:
        cached = []
        for tenant in ("acme", "acme", "umbrella", ""):
            request = EngineRequest("r", Endpoint.CHAT, body, tenant=tenant)
            cached.append((await engine.run(request, lambda _: None)).usage.cached_tokens)
    assert cached[1] >= 16
    assert [cached[0], cached[2], cached[3]] == [0, 0, 0]


async def test_a_contracts_bound_on_the_prompt_holds() -> None:
    async with running() as engine:
        for limit, status in ((40, 400), (400, 200)):
            body: dict[str, Any] = {"messages": [{"role": "user", "content": "word " * 100}], "max_tokens": 2}
            reply = await engine.run(EngineRequest("r", Endpoint.CHAT, body, max_prompt_tokens=limit), lambda _: None)
            assert reply.status == status
        assert json.loads(reply.body)["choices"]


async def test_a_closed_engine_is_dead_and_says_so() -> None:
    clock = VirtualClock()
    async with running(clock) as engine:
        task = asyncio.create_task(ask(engine, max_tokens=500))
        await clock.sleep(0.1)
        await engine.heartbeat()
        await engine.close()
        with pytest.raises(EngineDeadError):
            await task
        with pytest.raises(EngineDeadError):
            await engine.heartbeat()
        with pytest.raises(EngineDeadError):
            await ask(engine)
        await engine.close()
    assert engine.pids() == ()


async def test_a_long_overload_loses_nothing_and_leaks_nothing() -> None:
    """More than fits the pool, for ten minutes of its time and more: every request ends, and all blocks come back."""
    clock = VirtualClock()
    async with running(clock, kv_blocks=40) as engine:
        ended: list[int] = []

        async def client(number: int) -> None:
            for turn in range(20):
                reply, _ = await ask(engine, name=f"c{number}", max_tokens=100, temperature=1, seed=turn)
                ended.append(reply.usage.completion_tokens)
                await clock.sleep(number)

        await asyncio.gather(*(client(number) for number in range(30)))
        stats = engine.stats()
    assert ended == [100] * 600
    assert stats.kv_usage == 0.0
    assert stats.preemptions > 0
    assert stats.generated_tokens == 60_000
    assert clock.now() > 600
