"""A simulated engine whose experts real pools compute, over real sockets."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from deployments.engines.protocol import EngineDeadError, EngineReply, EngineStartError
from deployments.engines.simulated import SimulatedEngine
from deployments.engines.simulated.trunk_rows import MAX_ROWS
from deployments.experts.synthetic import SyntheticCheckpoint
from tests.unit.engines.simulated_pools import EXPERTS, SEED, ask, engine_of, pools, running

PAIRS = EXPERTS.layers * EXPERTS.top_k
"""What one token adds up to."""


def text_of(reply: EngineReply) -> str:
    return str(json.loads(reply.body)["choices"][0]["text"])


async def several(engine: SimulatedEngine, count: int = 6, tokens: int = 20) -> list[EngineReply]:
    asked = (ask(engine, f"Prompt {n} of some", tokens, traffic=f"kind{n % 2}") for n in range(count))
    return list(await asyncio.gather(*asked))


async def test_answers_and_experts_are_the_same_with_pools_and_without(tmp_path: Path) -> None:
    with pools(tmp_path, "even/a", "odd/b") as started:
        async with running(started.files) as trunk, running(None) as plain:
            pooled, alone = await several(trunk), await several(plain)
            assert trunk.expert_load() == plain.expert_load()
            report, none = await trunk.pools_report(), await plain.pools_report()
    assert [text_of(reply) for reply in pooled] == [text_of(reply) for reply in alone]
    assert [reply.experts for reply in pooled] == [reply.experts for reply in alone]
    assert none is None and all(reply.pools is None for reply in alone)
    assert report is not None and report["map_version"] == 1 and report["degraded_rows"] == 0
    assert {replica["name"] for replica in report["replicas"]} == {"a", "b"}


async def test_a_replica_killed_under_load_costs_no_request_and_no_right_answer(tmp_path: Path) -> None:
    with pools(tmp_path, "even/a", "even/b", "odd/c") as started:
        async with running(started.files) as trunk, running(None) as plain:
            load = asyncio.ensure_future(several(trunk, 8, 60))
            await asyncio.sleep(0.1)
            await asyncio.to_thread(started.kill, "a")
            replies = await load
            expected = await several(plain, 8, 60)
            report = await trunk.pools_report()
    assert [text_of(reply) for reply in replies] == [text_of(reply) for reply in expected]
    assert report is not None and (report["lost"], report["losses"], report["degraded_rows"]) == (["a"], 1, 0)
    uses = [reply.pools for reply in replies if reply.pools is not None]
    assert len(uses) == 8 and all(use.degraded_rows == 0 for use in uses)
    assert sum(use.resent_rows for use in uses) == report["resent_rows"]
    assert any("a" in part.replicas for use in uses for part in use.parts)


async def test_experts_that_stand_in_are_told_to_the_requests_that_they_concern(tmp_path: Path) -> None:
    with pools(tmp_path, "even/a", "odd/b") as started:
        async with running(started.files) as trunk:
            before = await ask(trunk)
            await asyncio.to_thread(started.kill, "a")
            after = await ask(trunk)
            report = await trunk.pools_report()
    assert text_of(before) == text_of(after)
    assert before.pools and before.pools.degraded_rows == 0
    assert report is not None and after.pools and after.pools.degraded_rows == report["degraded_rows"] > 0


async def test_without_any_pool_the_engine_waits_and_then_is_dead(tmp_path: Path) -> None:
    with pools(tmp_path, "even/a", "odd/b", outage_s=0.3) as started:
        async with running(started.files) as trunk:
            load = asyncio.ensure_future(
                asyncio.gather(*(ask(trunk, f"{n}", 500) for n in range(3)), return_exceptions=True)
            )
            await asyncio.sleep(0.05)
            for name in ("a", "b"):
                await asyncio.to_thread(started.kill, name)
            failed = await load
            assert all(isinstance(error, EngineDeadError) and "could be reached" in str(error) for error in failed)
            for asked in (trunk.heartbeat(), ask(trunk), trunk.pools_report()):
                with pytest.raises(EngineDeadError, match="could be reached"):
                    await asked


async def test_pools_that_compute_something_else_end_the_engine(tmp_path: Path) -> None:
    with pools(tmp_path, "odd/b") as started:
        started.start("even", "a", SyntheticCheckpoint(EXPERTS.layers, EXPERTS.experts, seed=SEED + 1))
        started.write_map()
        async with running(started.files) as trunk:
            with pytest.raises(EngineDeadError, match="pools answered wrong in layer"):
                await ask(trunk, tokens=200)


async def test_a_step_takes_as_long_as_its_pools_while_the_event_loop_goes_on(tmp_path: Path) -> None:
    with pools(tmp_path, "odd/b") as started:
        started.start("even", "a", pairs_per_s=100.0)
        started.write_map()
        async with running(started.files) as trunk:
            begun, beats, longest = time.monotonic(), 0, 0.0
            request = asyncio.ensure_future(ask(trunk, tokens=10))
            while not request.done():
                last = time.monotonic()
                await trunk.heartbeat()
                await asyncio.sleep(0.001)
                beats, longest = beats + 1, max(longest, time.monotonic() - last)
            took, use = time.monotonic() - begun, request.result().pools
    assert use is not None
    assert 0.1 < use.parts[0].pairs / 100 * 0.9 < use.wait_s <= took
    assert beats > 20 and longest < 0.1


async def test_a_reply_tells_what_each_pool_did_for_its_request(tmp_path: Path) -> None:
    begun = time.time()
    with pools(tmp_path, "even/a", "odd/b", "odd/c") as started:
        async with running(started.files) as trunk:
            replies = await several(trunk)
            report = await trunk.pools_report()
    assert report is not None
    uses = [reply.pools for reply in replies if reply.pools is not None]
    for use, reply in zip(uses, replies, strict=True):
        tokens = reply.usage.prompt_tokens + reply.usage.completion_tokens - 1
        assert sum(part.pairs for part in use.parts) == tokens * PAIRS
        assert [part.pool for part in use.parts] == ["even", "odd"]
        assert use.parts[0].replicas == ("a",) and {"b", "c"} >= set(use.parts[1].replicas) > set()
        assert use.steps == reply.usage.completion_tokens and use.resent_rows == use.degraded_rows == 0
        assert begun <= use.begun_s < use.ended_s <= time.time()
    computed = sum(replica["pairs"] for replica in report["replicas"])
    assert computed == sum(part.pairs for use in uses for part in use.parts)


async def test_a_long_prompt_sends_some_of_its_tokens_and_decoding_goes_on(tmp_path: Path) -> None:
    with pools(tmp_path, "even/a", "odd/b") as started:
        async with running(started.files) as trunk:
            first = asyncio.ensure_future(ask(trunk, tokens=100))
            await asyncio.sleep(0.05)
            reply, other = await ask(trunk, "long " * 800, tokens=1), await first
    assert reply.usage.prompt_tokens == 1000 and reply.pools is not None and other.pools is not None
    assert 200 * PAIRS < sum(part.pairs for part in reply.pools.parts) <= MAX_ROWS * PAIRS
    assert sum(part.pairs for part in other.pools.parts) == (other.usage.prompt_tokens + 99) * PAIRS


async def test_a_parked_pool_wakes_for_tokens_that_need_it(tmp_path: Path) -> None:
    with pools(tmp_path, "odd/b") as started:
        async with running(started.files) as trunk:
            request = asyncio.ensure_future(ask(trunk))
            while not (started.files.wanted / "even").exists():
                await asyncio.sleep(0.01)
            started.start("even", "a")
            started.write_map()
            reply, report = await request, await trunk.pools_report()
    assert report is not None and (report["map_version"], report["refused"]) == (2, "")
    assert reply.pools is not None and reply.pools.degraded_rows == 0 and reply.pools.wait_s > 0.05
    assert [part.pool for part in reply.pools.parts] == ["even", "odd"]


async def test_where_a_parked_pool_does_not_wake_other_experts_stand_in(tmp_path: Path) -> None:
    with pools(tmp_path, "odd/b", wake_s=0.2) as started:
        async with running(started.files) as trunk:
            reply = await ask(trunk)
    assert reply.pools is not None and reply.pools.degraded_rows > 0 and reply.pools.wait_s > 0.2
    assert [part.pool for part in reply.pools.parts] == ["odd"]


async def test_a_request_that_goes_away_leaves_the_engine_as_it_was(tmp_path: Path) -> None:
    with pools(tmp_path, "even/a", "odd/b") as started:
        async with running(started.files) as trunk:
            request = asyncio.ensure_future(ask(trunk, tokens=5000))
            await asyncio.sleep(0.05)
            request.cancel()
            assert (await ask(trunk)).status == 200
            assert trunk.stats().running == 0


async def test_closing_does_not_wait_for_pools_that_are_gone(tmp_path: Path) -> None:
    with pools(tmp_path, "even/a", "odd/b", outage_s=6.0) as started:
        trunk = engine_of(started.files)
        await trunk.start()
        request = asyncio.ensure_future(ask(trunk, tokens=5000))
        await asyncio.sleep(0.05)
        for name in ("a", "b"):
            await asyncio.to_thread(started.kill, name)
        begun = time.monotonic()
        await trunk.close()
        assert time.monotonic() - begun < 3
        with pytest.raises(EngineDeadError):
            await request


@pytest.mark.parametrize("wrong", ["experts", "clock", "map", "secret", "nobody", "model"])
async def test_a_trunk_that_cannot_be_says_why(tmp_path: Path, wrong: str) -> None:
    said = {
        "experts": "engine.simulated.experts",
        "clock": "virtual clock",
        "map": "no JSON",
        "secret": "know the secret",
        "nobody": "cannot be reached",
        "model": "another model",
    }
    with pools(tmp_path, *(() if wrong == "nobody" else ("even/a", "odd/b"))) as started:
        if wrong == "map":
            started.files.map.write_text("no map")
        elif wrong == "secret":
            started.files.secret.write_bytes(b"another")
        elif wrong == "nobody":
            started.start("even", "a")
            started.start("odd", "b")
            started.write_map()
            started.kill("a")
        engine = engine_of(
            started.files,
            experts=None if wrong == "experts" else EXPERTS,
            clock="virtual" if wrong == "clock" else "real",
            seed=SEED + 1 if wrong == "model" else SEED,
        )
        with pytest.raises(EngineStartError, match=said[wrong]):
            await engine.start()
        await engine.close()
