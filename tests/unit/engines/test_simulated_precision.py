"""The simulated engine changes its KV precision as a real one does: the same answers, other counts of blocks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cluster.config.engine import EngineConfig, EngineType, SimulatedConfig
from deployments.engines.kv_precision import KvPrecisionError, KvSwitch, KvUse
from deployments.engines.protocol import Endpoint, EngineDeadError, EngineReply, EngineRequest
from deployments.engines.simulated import SimulatedEngine
from deployments.engines.simulated.clock import VirtualClock

BLOCKS = 16


@asynccontextmanager
async def running(**changes: object) -> AsyncIterator[SimulatedEngine]:
    settings = SimulatedConfig(kv_blocks=BLOCKS, kv_block_tokens=16)
    config = EngineConfig(type=EngineType.SIMULATED, simulated=settings, max_num_seqs=8).model_copy(update=changes)
    engine = SimulatedEngine("dense", config, VirtualClock())
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def ask(engine: SimulatedEngine, prompt: str, tokens: int, sent: list[bytes]) -> EngineReply:
    body = {"prompt": prompt, "max_tokens": tokens, "stream": True}
    return await engine.run(EngineRequest(prompt[:9], Endpoint.COMPLETION, body), sent.append)


async def answers(engine: SimulatedEngine, after: int | None) -> tuple[list[list[bytes]], list[KvUse], KvSwitch | None]:
    """Events and KV notes of four answers; the precision changes once each has sent `after` events."""
    sent: list[list[bytes]] = [[] for _ in range(4)]
    tasks = [asyncio.create_task(ask(engine, f"Question {n}?", 30, events)) for n, events in enumerate(sent)]
    switch = None
    if after is not None:
        while min(map(len, sent)) < after:
            await asyncio.sleep(0)
        switch = await engine.set_kv_precision("fp8")
    replies = [await task for task in tasks]
    assert [(reply.status, reply.usage.completion_tokens) for reply in replies] == [(200, 30)] * 4
    return sent, [reply.kv for reply in replies], switch


@pytest.mark.parametrize("after", [0, 1, 7, 25])
async def test_answers_are_the_same_through_a_change(after: int) -> None:
    async with running() as engine:
        plain, use, _ = await answers(engine, None)
        assert use == [KvUse("simulated16")] * 4
    async with running() as engine:
        changed, use, switch = await answers(engine, after)
        stats = engine.stats()
    assert switch is not None
    assert changed == plain
    assert (switch.before, switch.after, switch.blocks_before, switch.blocks_after) == (
        "simulated16",
        "fp8",
        BLOCKS,
        2 * BLOCKS,
    )
    assert (stats.kv_precision, stats.kv_switches, stats.kv_blocks) == ("fp8", 1, 2 * BLOCKS)
    assert (stats.forced_preemptions, stats.preemptions) == (switch.preempted, 0)
    assert stats.recomputed_tokens == switch.tokens == sum(one.recomputed_tokens for one in use)
    assert (stats.kv_usage, stats.running, stats.waiting) == (0.0, 0, 0)
    assert {one.precision for one in use} == {"fp8"}
    assert engine._scheduler.faults() == []
    if after:
        assert switch.preempted == 4
        assert [(one.preemptions, one.switches) for one in use] == [(1, 1)] * 4


async def test_more_requests_run_in_twice_the_blocks() -> None:
    """Each comes to five blocks, so three fit in 16 and six in 32."""
    prompts = [f"Question {number}: " + "why is that so? " * 10 for number in range(6)]

    async def crowd(precision: str) -> int:
        async with running() as engine:
            await engine.set_kv_precision(precision)
            await asyncio.gather(*(ask(engine, prompt, 30, []) for prompt in prompts))
            return engine.stats().preemptions

    assert await crowd("auto") > 0
    assert await crowd("fp8") == 0


async def test_a_prefix_that_was_cached_is_not_found_after_a_change() -> None:
    prompt = "The same long prompt. " * 20

    async with running() as engine:
        cached = [(await ask(engine, prompt, 2, [])).usage.cached_tokens for _ in range(2)]
        for precision in ("fp8", "auto"):
            await engine.set_kv_precision(precision)
            cached += [(await ask(engine, prompt, 2, [])).usage.cached_tokens for _ in range(2)]
    assert cached == [0, cached[1]] * 3
    assert cached[1] >= 96


async def test_there_and_back_many_times() -> None:
    async with running() as engine:
        sent: list[bytes] = []
        task = asyncio.create_task(ask(engine, "Question", 60, sent))
        for number in range(40):
            while len(sent) <= number and not task.done():
                await asyncio.sleep(0)
            switch = await engine.set_kv_precision("auto" if number % 2 else "fp8")
            assert switch.blocks_after == BLOCKS * (1 if number % 2 else 2)
            assert engine._scheduler.faults() == []
        reply = await task
        stats = engine.stats()
    assert (reply.usage.completion_tokens, reply.kv.switches, reply.kv.preemptions) == (60, 40, 40)
    assert (stats.kv_switches, stats.kv_blocks, stats.kv_precision, stats.kv_usage) == (40, BLOCKS, "simulated16", 0.0)
    async with running() as engine:
        plain: list[bytes] = []
        await ask(engine, "Question", 60, plain)
    assert sent == plain


async def test_what_it_cannot_be_is_refused_by_name() -> None:
    async with running() as engine:
        with pytest.raises(KvPrecisionError, match="int4: it can be auto or fp8"):
            await engine.set_kv_precision("int4")
        same = await engine.set_kv_precision("auto")
        assert (same.preempted, same.blocks_before, same.blocks_after) == (0, BLOCKS, BLOCKS)
        assert engine.stats().kv_switches == 0


async def test_a_precision_that_is_set_does_not_change() -> None:
    async with running(kv_cache_dtype="fp8") as engine:
        assert (engine.kv_precisions, engine.stats().kv_precision) == ((), "fp8")
        with pytest.raises(KvPrecisionError, match="auto: a KV precision that is set to fp8"):
            await engine.set_kv_precision("auto")


async def test_an_engine_that_has_stopped_does_not_change() -> None:
    async with running() as engine:
        pass
    with pytest.raises(EngineDeadError):
        await engine.set_kv_precision("fp8")
