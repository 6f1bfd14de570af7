"""A change of KV precision in engines of other make-ups, small pools and failures; each test has an engine of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deployments.engines import vllm_engine
from deployments.engines.kv_precision import KvPrecisionError
from deployments.engines.protocol import EngineDeadError, EngineReply
from deployments.engines.vllm_engine import VllmEngine
from deployments.engines.vllm_kv_core import EXIT_HALF_CHANGED
from deployments.processes import process_state
from tests.integration.dense_engine import Call, answer_of, running_dense
from tests.integration.failing_worker import FAILING, FailingWorker
from tests.waiting import until

# Importing vLLM and its dependencies warns about many things that are not ours.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(240), pytest.mark.fp8_kv]

PROMPTS = [f"Question {number}: what is the capital of France and why is it famous?" for number in range(4)]
TOKENS = 40


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is put here is set on vLLM's arguments."""
    changes: dict[str, Any] = {}
    whole = vllm_engine.engine_args

    def changed(*args: Any) -> Any:
        made = whole(*args)
        for name, value in changes.items():
            setattr(made, name, value)
        return made

    monkeypatch.setattr(vllm_engine, "engine_args", changed)
    return changes


async def greedy(engine: VllmEngine) -> list[str]:
    answers = [answer_of(await Call(engine).chat(prompt, max_tokens=8, ignore_eos=True)) for prompt in PROMPTS]
    return [answer["choices"][0]["message"]["content"] for answer in answers]


@contextlib.asynccontextmanager
async def streaming(engine: VllmEngine) -> AsyncIterator[tuple[list[Call], list[asyncio.Task[EngineReply]]]]:
    """Streams of which each has sent some tokens."""
    calls = [Call(engine) for _ in PROMPTS]
    asked = {"max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    tasks = [asyncio.create_task(call.chat(prompt, **asked)) for call, prompt in zip(calls, PROMPTS, strict=True)]
    await until(lambda: all(len(call.events) >= 5 for call in calls), timeout_s=60)
    yield calls, tasks
    await asyncio.gather(*tasks, return_exceptions=True)


async def changes_there_and_back(engine: VllmEngine) -> None:
    assert engine.kv_blockers == ()
    before = await greedy(engine)
    async with streaming(engine) as (calls, tasks):
        switch = await engine.set_kv_precision("fp8")
        sent = [call.text for call in calls]
        replies = await asyncio.gather(*tasks)
    assert (switch.preempted, switch.after) == (len(PROMPTS), "fp8")
    assert switch.blocks_after >= 2 * switch.blocks_before - 2
    assert [(reply.status, reply.usage.completion_tokens, reply.kv.switches) for reply in replies] == [
        (200, TOKENS, 1)
    ] * len(PROMPTS)
    assert all(call.text.startswith(text) for call, text in zip(calls, sent, strict=True))
    back = await engine.set_kv_precision("auto")
    assert (back.blocks_before, back.blocks_after) == (switch.blocks_after, switch.blocks_before)
    assert await greedy(engine) == before
    await engine.heartbeat()
    stats = engine.stats()
    assert (stats.kv_usage, stats.kv_switches, stats.forced_preemptions) == (0.0, 2, len(PROMPTS))
    assert stats.recomputed_tokens == sum(reply.kv.recomputed_tokens for reply in replies) > 0


async def test_a_worker_in_a_process_of_its_own_and_no_prefix_cache(arguments: dict[str, Any]) -> None:
    arguments["distributed_executor_backend"] = "mp"
    async with running_dense(max_num_batched_tokens=128, prefix_caching=False) as engine:
        await changes_there_and_back(engine)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_a_compiled_model() -> None:
    async with running_dense(max_num_batched_tokens=128, enforce_eager=False) as engine:
        await changes_there_and_back(engine)


async def test_preemptions_for_want_of_blocks_are_told_apart() -> None:
    """A pool of eight blocks. Six requests hold one each until they pass 128 tokens and want two."""
    async with running_dense(max_model_len=512, max_num_batched_tokens=128, kv_cache_bytes=24 * 2**20) as engine:
        assert 7 <= engine.stats().kv_blocks <= 9
        prompts = [f"Story {number}: " + "the sea was calm that day. " * 10 for number in range(6)]
        replies = await asyncio.gather(
            *(Call(engine).chat(prompt, max_tokens=90, ignore_eos=True, stream=True) for prompt in prompts)
        )
        await engine.heartbeat()
        stats = engine.stats()
    assert [(reply.status, reply.usage.completion_tokens) for reply in replies] == [(200, 90)] * 6
    assert {(reply.kv.precision, reply.kv.switches) for reply in replies} == {("bfloat16", 0)}
    assert stats.preemptions == sum(reply.kv.preemptions for reply in replies) >= 1
    assert (stats.forced_preemptions, stats.kv_switches) == (0, 0)
    assert stats.recomputed_tokens == sum(reply.kv.recomputed_tokens for reply in replies) > 0
    # One that lost a full block may find it again.
    assert all(reply.kv.preemptions > 0 for reply in replies if reply.kv.recomputed_tokens)


async def test_a_change_that_fails_leaves_things_as_they_were_or_ends_the_engine(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failing = tmp_path / "failing"
    failing.write_text("")
    monkeypatch.setenv(FAILING, str(failing))
    arguments["worker_extension_cls"] = f"{FailingWorker.__module__}.{FailingWorker.__name__}"
    async with running_dense(max_num_batched_tokens=128) as engine:
        before = await greedy(engine)
        sized = engine.stats()
        failing.write_text("fp8")
        async with streaming(engine) as (_, tasks):
            with pytest.raises(KvPrecisionError, match=r"could not be made in fp8 \(MemoryError\); it is as it was"):
                await engine.set_kv_precision("fp8")
            replies = await asyncio.gather(*tasks)
        # Those under way go on, with what was taken from them computed again.
        assert [(reply.status, reply.usage.completion_tokens) for reply in replies] == [(200, TOKENS)] * len(PROMPTS)
        assert [(reply.kv.precision, reply.kv.preemptions) for reply in replies] == [("bfloat16", 1)] * len(PROMPTS)
        await engine.heartbeat()
        stats = engine.stats()
        assert (stats.kv_precision, stats.kv_switches, stats.kv_blocks) == ("bfloat16", 0, sized.kv_blocks)
        assert (stats.forced_preemptions, stats.preemptions) == (len(PROMPTS), 0)
        assert await greedy(engine) == before
        # What stood in the way is gone.
        failing.write_text("")
        assert (await engine.set_kv_precision("fp8")).after == "fp8"
        await engine.set_kv_precision("auto")
        assert await greedy(engine) == before

        failing.write_text("fp8 auto")
        (process,) = engine._engine.engine_core.resources.engine_manager.processes
        async with streaming(engine) as (_, tasks):
            with pytest.raises(EngineDeadError, match="in the middle of a change"):
                await engine.set_kv_precision("fp8")
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, EngineDeadError) for end in ended)
        await until(lambda: process_state(process.pid) in {None, "Z"})
        process.join(5)
        assert process.exitcode == EXIT_HALF_CHANGED
