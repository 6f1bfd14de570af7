from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import numpy as np
import pytest

from cluster.config.engine import EngineConfig, EngineType, SimulatedConfig, SimulatedExperts
from cluster.config.experts import ExpertsConfig
from cluster.experts.heat import MAX_TRAFFIC, HeatMeter
from cluster.experts.load import Counts
from cluster.experts.stability import compare
from deployments.engines.expert_routing import NO_EXPERTS
from deployments.engines.protocol import Endpoint, EngineReply, EngineRequest
from deployments.engines.simulated import SimulatedEngine
from deployments.engines.simulated.clock import VirtualClock

EXPERTS = SimulatedExperts(layers=3, experts=8, top_k=2)
PAIRS = EXPERTS.layers * EXPERTS.top_k
"""What one token adds up to."""


@asynccontextmanager
async def running(
    experts: SimulatedExperts | None = EXPERTS, kv_blocks: int = 64, **changes: object
) -> AsyncIterator[SimulatedEngine]:
    settings = SimulatedConfig(kv_blocks=kv_blocks, kv_block_tokens=16, experts=experts)
    config = EngineConfig(type=EngineType.SIMULATED, simulated=settings, max_num_seqs=8).model_copy(update=changes)
    engine = SimulatedEngine("sparse", config, VirtualClock())
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def ask(
    engine: SimulatedEngine, prompt: str = "Hello, experts", *, traffic: str = "", log: int = 0, **body: object
) -> Awaitable[EngineReply]:
    asked = {"prompt": prompt, "max_tokens": 10} | body
    request = EngineRequest("r", Endpoint.COMPLETION, asked, traffic=traffic, log_experts=log)  # type: ignore[arg-type]
    return engine.run(request, lambda _: None)


def total(engine: SimulatedEngine) -> Counts:
    load = engine.expert_load()
    assert load is not None
    return load.counts()


async def test_without_experts_it_tells_of_none() -> None:
    async with running(None) as engine:
        reply = await ask(engine, log=5)
        assert (engine.expert_blockers, engine.expert_load(), reply.experts) == ((NO_EXPERTS,), None, None)


async def test_a_request_used_its_tokens_experts_except_for_the_last_one() -> None:
    async with running() as engine:
        reply = await ask(engine)
        assert engine.expert_blockers == ()
        use = reply.experts
        assert use is not None
        assert use.tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens - 1
        assert total(engine).sum() == use.tokens * PAIRS
        assert use.distinct == np.count_nonzero(total(engine))
        assert use.logs == ()


async def test_load_grows_while_a_request_is_computed_and_traffic_once_it_ended() -> None:
    async with running() as engine:
        task = asyncio.ensure_future(ask(engine, traffic="chat", max_tokens=40))
        seen = []
        while not task.done():
            await asyncio.sleep(0)
            load = engine.expert_load()
            assert load is not None
            seen.append((int(load.counts().sum()), len(load.by_traffic)))
        sums = [tokens for tokens, _ in seen]
        assert sums == sorted(sums) and len(set(sums)) > 20
        assert seen[len(seen) // 2][1] == 0
        load = engine.expert_load()
        assert load is not None
        np.testing.assert_array_equal(load.traffic()["chat"], load.counts())


async def test_tokens_in_the_prefix_cache_use_no_experts_unless_they_are_to_be_listed() -> None:
    prompt = "x" * 400
    async with running() as engine:
        await ask(engine, prompt)
        cached, listed = await ask(engine, prompt), await ask(engine, prompt, log=1000)
    assert cached.usage.cached_tokens == 96 and listed.usage.cached_tokens == 0
    assert cached.experts is not None and listed.experts is not None
    assert (cached.experts.tokens, listed.experts.tokens) == (4 + 9, 100 + 9)


async def test_tokens_that_are_computed_again_count_again() -> None:
    async with running(kv_blocks=8, prefix_caching=False) as engine:
        replies = await asyncio.gather(*(ask(engine, "y" * 80 + str(n), max_tokens=60) for n in range(4)))
        stats = engine.stats()
        sums = total(engine).sum()
    assert stats.recomputed_tokens > 0
    for reply in replies:
        assert reply.experts is not None
        assert reply.experts.tokens == reply.usage.prompt_tokens + 59 + reply.kv.recomputed_tokens
    assert sum(reply.experts.tokens for reply in replies if reply.experts) * PAIRS == sums


async def test_a_cancelled_request_leaves_what_was_computed() -> None:
    async with running() as engine:
        task = asyncio.ensure_future(ask(engine, traffic="code", max_tokens=500))
        while total(engine).sum() < 50 * PAIRS:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        before = total(engine).sum()
        assert (await ask(engine)).experts is not None
        load = engine.expert_load()
        assert load is not None
        assert load.traffic()["code"].sum() == before
        assert not engine._experts._open  # type: ignore[union-attr]


async def test_logs_list_the_experts_of_each_token_up_to_the_bound() -> None:
    async with running() as engine:
        whole = await ask(engine, n=2, log=1000)
        short = await ask(engine, n=2, log=7)
        counts = total(engine)
    assert whole.experts is not None and short.experts is not None
    assert len(whole.experts.logs) == 2
    for log, cut in zip(whole.experts.logs, short.experts.logs, strict=True):
        assert len(log.tokens) == 4 + 9 and log.left_out == 0
        assert cut.tokens == log.tokens[:7] and cut.left_out == 6
        np.testing.assert_array_equal(cut.array(cut_shape := short.experts.shape), log.array(cut_shape)[:7])
    listed = sum(np.bincount(log.array(whole.experts.shape)[:, 1].ravel(), minlength=8) for log in whole.experts.logs)
    np.testing.assert_array_equal(counts[1], 2 * listed)


async def test_the_same_seed_gives_the_same_routes_and_traffic_changes_them() -> None:
    logs = []
    for traffic in ("chat", "chat", "code"):
        async with running() as engine:
            use = (await ask(engine, traffic=traffic, log=100, temperature=0)).experts
            assert use is not None
            logs.append(use.logs[0])
    chat, again, code = logs
    assert chat == again
    assert compare(chat, code, use.shape).score < 0.9


async def test_heat_moves_with_the_traffic() -> None:
    config = ExpertsConfig(half_life_s=5, dwell_s=1, min_tokens=20)
    hottest: dict[str, set[tuple[int, int]]] = {}
    async with running() as engine:
        load = engine.expert_load()
        assert load is not None
        meter = HeatMeter(load.shape, config)
        for second in range(40):
            kind = "chat" if second < 20 else "code"
            await ask(engine, f"{kind} {second}", traffic=kind, max_tokens=50)
            meter.add("a", total(engine), second)
            hottest[kind] = {(hot.layer, hot.expert) for hot in meter.heat(second).hot}
    assert hottest["chat"] and hottest["code"] and hottest["chat"] != hottest["code"]


async def test_kinds_of_traffic_are_bounded() -> None:
    async with running() as engine:
        for kind in range(MAX_TRAFFIC + 5):
            await ask(engine, traffic=f"kind {kind}", max_tokens=1)
        load = engine.expert_load()
        assert load is not None and len(load.by_traffic) == MAX_TRAFFIC and "" in load.by_traffic
        np.testing.assert_array_equal(sum(load.traffic().values()), load.counts())


@pytest.mark.parametrize("token", [-5, 10**30])
async def test_token_ids_of_any_size_can_be_listed(token: int) -> None:
    async with running() as engine:
        use = (await ask(engine, prompt=[token, 1], log=10)).experts  # type: ignore[arg-type]
    assert use is not None and all(0 <= one < 2**63 for one in use.logs[0].tokens)
