"""Engines that stop and die: a real one, watched as a replica watches it. The tests run in this order."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from cluster.config.model import ReplicaConfig
from deployments.engines.protocol import EngineDeadError
from deployments.engines.vllm_engine import VllmEngine
from deployments.processes import process_state
from deployments.replica.watcher import EngineWatcher, WatchLimits
from tests.integration.dense_engine import Call, running_dense
from tests.waiting import until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.filterwarnings("ignore")]

LIMIT_S = 3 * 5.0
"""Three times the seconds within which a stopped or dead engine is out of rotation, on a machine that may be busy; with a
clock of its own, tests/unit/replica/test_watcher.py holds it to the goal itself."""

SHIPPED = WatchLimits.of(ReplicaConfig().stall_timeout_s)
"""What a replica watches with unless its model's configuration says otherwise."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[VllmEngine]:
    async with running_dense() as started:
        yield started


async def watched(engine: VllmEngine) -> str:
    return await EngineWatcher(engine, SHIPPED).watch()


async def test_a_busy_engine_is_left_alone(engine: VllmEngine) -> None:
    watcher = asyncio.create_task(watched(engine))
    replies = await asyncio.gather(
        *(Call(engine).chat("word " * 900, max_tokens=60, ignore_eos=True) for _ in range(8))
    )
    assert {reply.status for reply in replies} == {200}
    assert not watcher.done()
    watcher.cancel()


@pytest.mark.parametrize("busy", [True, False])
async def test_a_stopped_engine_is_found(engine: VllmEngine, busy: bool) -> None:
    (pid,) = engine.pids()
    call = Call(engine)
    request = asyncio.create_task(call.chat("Tell a story.", max_tokens=200, ignore_eos=True, stream=True))
    await until(lambda: len(call.events) > 2, timeout_s=20)
    if not busy:
        assert (await request).status == 200
    watcher = asyncio.create_task(watched(engine))
    # Just after a heartbeat, which is when finding it takes longest.
    await asyncio.sleep(1.4)
    started = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(LIMIT_S):
            reason = await watcher
    finally:
        os.kill(pid, signal.SIGCONT)
    assert "stopped or deadlocked" in reason
    assert time.monotonic() - started < LIMIT_S
    # It goes on where it was, so the next test finds a healthy engine.
    assert (await request).status == 200
    await engine.heartbeat()


async def test_a_killed_engine_is_found_and_fails_what_it_served(engine: VllmEngine) -> None:
    (pid,) = engine.pids()
    streamed, plain = Call(engine), Call(engine)
    requests = [
        asyncio.create_task(streamed.chat("Tell a story.", max_tokens=400, ignore_eos=True, stream=True)),
        asyncio.create_task(plain.chat("Tell a story.", max_tokens=400, ignore_eos=True)),
    ]
    await until(lambda: len(streamed.events) > 2, timeout_s=20)
    watcher = asyncio.create_task(watched(engine))
    await asyncio.sleep(0.1)
    started = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(LIMIT_S):
        reason = await watcher
        ended = await asyncio.gather(*requests, return_exceptions=True)
    assert time.monotonic() - started < LIMIT_S
    assert str(pid) in reason or "does not answer" in reason
    assert [type(end) for end in ended] == [EngineDeadError, EngineDeadError]
    assert b"[DONE]" not in b"".join(streamed.events)
    for chunk in streamed.chunks:
        assert "choices" in chunk or json.dumps(chunk["error"])
    with pytest.raises(EngineDeadError):
        await engine.heartbeat()
    with pytest.raises(EngineDeadError):
        await Call(engine).chat("Hello")
    async with asyncio.timeout(10):
        await engine.close()
    assert process_state(pid) in {None, "Z"}
