"""A second engine beside the first, with simulated ones that pretend not to be able to change while they run."""

from __future__ import annotations

import asyncio

import pytest

from cluster.config.engine import EngineConfig, EngineType, SimulatedConfig
from deployments.engines.kv_precision import KvPrecisionError
from deployments.engines.protocol import Endpoint, EngineReply, EngineRequest, EngineStartError
from deployments.engines.second_engine import SecondEngine
from deployments.engines.simulated import SimulatedEngine


class Fixed(SimulatedEngine):
    """Cannot change while it runs."""

    def __init__(self, precision: str, fails: bool = False) -> None:
        simulated = SimulatedConfig(kv_blocks=20 if precision == "fp8" else 10, decode_step_base_s=0.002)
        kv = "fp8" if precision == "fp8" else "auto"
        super().__init__("m", EngineConfig(type=EngineType.SIMULATED, kv_cache_dtype=kv, simulated=simulated))
        self.kv_precisions: tuple[str, ...] = ()
        self.kv_blockers: tuple[str, ...] = ("asynchronous scheduling",)
        self.fails = fails
        self.closed = False

    async def start(self) -> None:
        if self.fails:
            raise EngineStartError("no memory for it")
        await super().start()

    async def close(self) -> None:
        self.closed = True
        await super().close()


class Made:
    """Remembers what was made."""

    def __init__(self) -> None:
        self.engines: list[Fixed] = []
        self.fail = False

    def __call__(self, precision: str) -> Fixed:
        self.engines.append(Fixed(precision, self.fail))
        return self.engines[-1]


def ask(engine: SecondEngine, name: str, tokens: int) -> asyncio.Task[EngineReply]:
    body = {"messages": [{"role": "user", "content": name}], "max_tokens": tokens}
    return asyncio.create_task(engine.run(EngineRequest(name, Endpoint.CHAT, body), lambda _: None))


async def test_what_runs_finishes_on_the_first_and_what_comes_goes_to_the_second() -> None:
    made = Made()
    engine = SecondEngine(made)
    await engine.start()
    early = ask(engine, "early", 200)
    await asyncio.sleep(0.05)
    assert engine.kv_precisions == ("auto", "fp8")
    switch = await engine.set_kv_precision("fp8")
    assert (switch.before, switch.after, switch.blocks_before, switch.blocks_after) == ("simulated16", "fp8", 10, 20)
    assert (switch.pause_s, switch.preempted, switch.tokens) == (0, 0, 0)
    late = ask(engine, "late", 5)
    reply = await late
    assert (reply.status, reply.kv.precision) == (200, "fp8")
    first, second = made.engines
    assert not early.done()
    assert not first.closed
    with pytest.raises(KvPrecisionError, match="still works on 1 requests"):
        await engine.set_kv_precision("auto")
    reply = await early
    assert (reply.status, reply.usage.completion_tokens, reply.kv.precision) == (200, 200, "simulated16")
    for _ in range(100):
        if first.closed:
            break
        await asyncio.sleep(0.02)
    assert first.closed
    assert not second.closed
    stats = engine.stats()
    assert (stats.kv_precision, stats.kv_blocks, stats.kv_switches) == ("fp8", 20, 1)
    assert stats.generated_tokens == 205
    back = await engine.set_kv_precision("auto")
    assert (back.after, engine.stats().kv_switches) == ("simulated16", 2)
    await engine.heartbeat()
    await engine.close()
    assert all(one.closed for one in made.engines)


async def test_totals_never_fall_while_engines_change() -> None:
    made = Made()
    engine = SecondEngine(made)
    await engine.start()
    seen = []
    for precision in ("fp8", "auto", "fp8"):
        await ask(engine, precision, 20)
        seen.append(engine.stats().generated_tokens)
        await engine.set_kv_precision(precision)
        seen.append(engine.stats().generated_tokens)
        await asyncio.sleep(0.15)
        seen.append(engine.stats().generated_tokens)
    assert seen == sorted(seen)
    assert seen[-1] == 60
    await engine.close()


async def test_a_second_engine_that_does_not_start_changes_nothing() -> None:
    made = Made()
    engine = SecondEngine(made)
    await engine.start()
    made.fail = True
    with pytest.raises(KvPrecisionError, match="no second engine starts: no memory for it"):
        await engine.set_kv_precision("fp8")
    assert made.engines[1].closed
    assert engine.stats().kv_precision == "simulated16"
    assert (await ask(engine, "x", 3)).status == 200
    with pytest.raises(KvPrecisionError, match="int4"):
        await engine.set_kv_precision("int4")
    await engine.close()


async def test_a_heartbeat_that_the_first_does_not_answer_any_more_is_no_death() -> None:
    made = Made()
    engine = SecondEngine(made)
    await engine.start()
    running = ask(engine, "early", 40)
    await asyncio.sleep(0.02)
    await engine.set_kv_precision("fp8")
    first = made.engines[0]
    asked = asyncio.Event()

    async def never() -> None:
        asked.set()
        await asyncio.Event().wait()

    first.heartbeat = never  # type: ignore[method-assign]
    beat = asyncio.create_task(engine.heartbeat())
    await asked.wait()
    assert (await running).status == 200
    await asyncio.wait_for(beat, 2.0)
    await engine.close()


async def test_what_is_only_starting_is_closed_too() -> None:
    made = Made()
    engine = SecondEngine(made)
    await engine.start()
    starts, go_on = asyncio.Event(), asyncio.Event()
    start = Fixed.start

    async def slow(self: Fixed) -> None:
        starts.set()
        await go_on.wait()
        await start(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fixed, "start", slow)
        change = asyncio.create_task(engine.set_kv_precision("fp8"))
        await starts.wait()
        await engine.close()
        go_on.set()
        with pytest.raises(KvPrecisionError, match="being stopped"):
            await change
    assert [one.closed for one in made.engines] == [True, True]


async def test_the_precision_in_force_starts_nothing_and_a_quick_return_waits_for_the_first() -> None:
    made = Made()
    engine = SecondEngine(made)
    await engine.start()
    same = await engine.set_kv_precision("auto")
    assert same.before == same.after
    assert len(made.engines) == 1
    await engine.set_kv_precision("fp8")
    back = await engine.set_kv_precision("auto")
    assert back.after == "simulated16"
    assert made.engines[0].closed
    await engine.close()


async def test_an_engine_that_can_change_is_never_replaced() -> None:
    made: list[SimulatedEngine] = []

    def make(_: str) -> SimulatedEngine:
        made.append(SimulatedEngine("m", EngineConfig(type=EngineType.SIMULATED)))
        return made[-1]

    engine = SecondEngine(make)
    await engine.start()
    switch = await engine.set_kv_precision("fp8")
    assert switch.blocks_after == 2 * switch.blocks_before
    assert len(made) == 1
    assert engine.stats().kv_switches == 1
    await engine.close()
