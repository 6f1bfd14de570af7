"""KV precision from the replica's side, with an engine that is made up."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.engines import vllm_asking, vllm_internals, vllm_kv
from deployments.engines.kv_precision import KvPrecisionError, KvSwitch, KvUse
from deployments.engines.protocol import EngineDeadError
from deployments.engines.vllm_kv import VllmKv, Watched


class Engine:
    """As much of vLLM's engine as is asked. `answers` are by method; an exception is raised, and None never comes."""

    def __init__(self, cache_dtype: str = "auto", **answers: Any) -> None:
        self.vllm_config = SimpleNamespace(
            cache_config=SimpleNamespace(cache_dtype=cache_dtype, num_gpu_blocks=10, block_size=128)
        )
        self.model_config = SimpleNamespace(
            dtype="torch.bfloat16", hf_config=SimpleNamespace(quantization_config=None), quantization=None
        )
        self.engine_core = SimpleNamespace(call_utility_async=self._call)
        self.errored = False
        self.answers = {vllm_internals.BLOCKERS_METHOD: [], **answers}
        self.asked: list[tuple[Any, ...]] = []

    async def _call(self, method: str, *args: Any) -> Any:
        self.asked.append((method, *args))
        answer = self.answers[method]
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        return answer


async def detected(engine: Any) -> VllmKv:
    kv = VllmKv(engine)
    await kv.detect()
    return kv


async def test_a_change_is_told_with_its_counts() -> None:
    engine = Engine(pointsman_set_kv_precision=[0.04, 3, 200, 10, 20])
    kv = await detected(engine)
    assert (kv.precisions, kv.blockers, kv.precision) == (("auto", "fp8"), (), "bfloat16")
    assert await kv.switch("fp8") == KvSwitch("bfloat16", "fp8", 0.04, 3, 200, 10, 20)
    assert (kv.precision, kv.blocks) == ("fp8", 20)
    # It is so already: nobody is asked.
    asked = len(engine.asked)
    assert await kv.switch("fp8") == KvSwitch("fp8", "fp8", 0.0, 0, 0, 20, 20)
    assert len(engine.asked) == asked


@pytest.mark.parametrize(
    ("dtype", "found", "why"),
    [
        ("auto", ["CUDA graphs", "KV events"], "CUDA graphs; KV events"),
        ("fp8", [], "a KV precision that is set to fp8"),
    ],
)
async def test_what_stands_in_the_way_is_said(dtype: str, found: list[str], why: str) -> None:
    kv = await detected(Engine(dtype, pointsman_kv_blockers=found))
    assert kv.precisions == ()
    with pytest.raises(KvPrecisionError, match=f"the KV precision cannot change to fp8: {why}"):
        await kv.switch("fp8")


async def test_a_change_that_failed_leaves_the_books_as_they_were() -> None:
    kv = await detected(Engine(pointsman_set_kv_precision=RuntimeError("it is as it was")))
    with pytest.raises(KvPrecisionError, match="was not changed: it is as it was"):
        await kv.switch("fp8")
    assert (kv.precision, kv.blocks) == ("bfloat16", 10)


async def test_an_engine_that_ends_before_it_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_asking, "LOOK_EVERY_S", 0.01)
    engine = Engine(pointsman_set_kv_precision=None, pointsman_lost=None)
    kv = await detected(engine)
    change = asyncio.create_task(kv.switch("fp8"))
    await asyncio.sleep(0.05)
    assert not change.done()
    engine.errored = True
    with pytest.raises(EngineDeadError, match="in the middle of a change"):
        await change
    # An answer that is whole is not lost over what it cost.
    assert await kv.used(Watched(["a"], preempted=True)) == KvUse("bfloat16")


async def test_a_request_is_asked_about_only_if_it_was_preempted() -> None:
    engine = Engine(pointsman_lost=[2, 1, 300])
    kv = await detected(engine)
    asked = len(engine.asked)
    assert await kv.used(Watched(["a"])) == KvUse("bfloat16")
    assert len(engine.asked) == asked
    # A body with two prompts is two requests of vLLM's.
    assert await kv.used(Watched(["a", "b"], preempted=True)) == KvUse("bfloat16", 4, 2, 600)


async def test_outputs_pass_through_and_preemptions_are_noted() -> None:
    closed = []

    async def outputs() -> Any:
        try:
            for preemptions in (None, 0, 1, 1):
                metrics = None if preemptions is None else SimpleNamespace(num_preemptions=preemptions)
                yield SimpleNamespace(metrics=metrics, outputs=[])
        finally:
            closed.append(True)

    notes = Watched([])
    seen = [notes.preempted async for _ in vllm_kv.watch(outputs(), "a", notes)]
    assert (seen, notes.request_ids, closed) == ([False, False, True, True], ["a"], [True])
    left = vllm_kv.watch(outputs(), "b", Watched([]))
    await anext(left)
    await left.aclose()
    assert closed == [True, True]
