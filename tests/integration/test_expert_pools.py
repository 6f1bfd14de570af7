"""A real vLLM engine whose experts are in pool processes, against one that has them itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cluster.config.base import Kind
from cluster.config.engine import EngineConfig
from cluster.config.model import ModelConfig
from cluster.experts.pool_use import PoolUse
from cluster.experts.pools import PoolMap, split_evenly
from deployments.engines.vllm_args import VllmLaunch
from deployments.engines.vllm_engine import VllmEngine
from deployments.experts.uses import use_from
from deployments.models.sources import resolve
from tests.integration.sparse_random import EXPERTS, LAYERS, TOP_K, write_random_sparse
from tests.unit.experts.pool_processes import map_of, pool_process, trunk_files

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.integration,
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore"),
]

PROMPTS = [[(7 * i + 13 * j) % 40_000 + 100 for j in range(24)] for i in range(24)]
HALVES = split_evenly(range(LAYERS), EXPERTS, 2)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The model, and one that has two experts exchanged."""
    folder = tmp_path_factory.mktemp("sparse")
    dense = resolve("embedded:dense", None, lambda _message, _done: None)
    write_random_sparse(folder / "right", dense)
    write_random_sparse(folder / "wrong", dense, exchanged=(0, 1))
    return folder / "right", folder / "wrong"


@contextlib.asynccontextmanager
async def running(checkpoint: Path, pool_map: PoolMap | None = None, folder: Path | None = None) -> AsyncIterator[Any]:
    """vLLM's own engine, below our request path. With a map: a trunk. In float32: what differs is then no rounding."""
    before = dict(os.environ)
    if pool_map is not None and folder is not None:
        os.environ.update(trunk_files(folder, pool_map, wake_s=20, outage_s=20).environment())
    engine = EngineConfig(
        max_model_len=256, max_num_seqs=32, kv_cache_bytes=64 * 2**20, enforce_eager=True, dtype="float32"
    )
    config = ModelConfig(kind=Kind.SPARSE, roles=("strong",), source="embedded:sparse", engine=engine)
    started = VllmEngine(VllmLaunch("sparse", checkpoint, config))
    try:
        await started.start()
        yield started._engine
    finally:
        await started.close()
        os.environ.clear()
        os.environ.update(before)


async def generate(engine: Any, prompt: list[int], name: str | None = None, **parameters: Any) -> Any:
    from vllm import SamplingParams, TokensPrompt

    sampling = SamplingParams(temperature=0, ignore_eos=True, **parameters)
    tokens = TokensPrompt(prompt_token_ids=prompt)
    return [output async for output in engine.generate(tokens, sampling, name or uuid.uuid4().hex)][-1]


async def told(engine: Any, **wanted: Any) -> dict[str, Any]:
    """The trunk's report, once it says what is `wanted`."""
    async with asyncio.timeout(20):
        while True:
            report: dict[str, Any] = await engine.engine_core.call_utility_async("pointsman_pool_report")
            if all(report[key] == value for key, value in wanted.items()):
                return report
            await asyncio.sleep(0.05)


async def used(engine: Any, names: list[str]) -> list[PoolUse | None]:
    """What pools did for requests."""
    asked = [engine.engine_core.call_utility_async("pointsman_pool_use", name) for name in names]
    return [use_from(use) if use else None for use in await asyncio.gather(*asked)]


async def judged(engine: Any) -> list[list[tuple[int, float]]]:
    """For each prompt and place the most likely token and the log probability of the true one."""
    outputs = await asyncio.gather(*(generate(engine, p, max_tokens=1, prompt_logprobs=1) for p in PROMPTS))
    found = []
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        places = zip(prompt[1:], output.prompt_logprobs[1:], strict=True)
        found.append([(max(at, key=lambda t: at[t].logprob), at[true].logprob) for true, at in places])
    return found


def agreement(one: list[list[tuple[int, float]]], other: list[list[tuple[int, float]]]) -> tuple[float, float]:
    """Share of places with the same most likely token; mean difference of the true token's log probability."""
    pairs = [(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)]
    same = sum(a[0] == b[0] for a, b in pairs) / len(pairs)
    return same, sum(abs(a[1] - b[1]) for a, b in pairs) / len(pairs)


async def test_trunk_and_pools_say_what_the_engine_says(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    right, wrong = checkpoints
    async with running(right) as engine:
        known = await judged(engine)
    with contextlib.ExitStack() as stack:
        one, two, bad = (
            stack.enter_context(pool_process(checkpoint, holds, tmp_path, name))
            for checkpoint, holds, name in ((right, HALVES[0], "a"), (right, HALVES[1], "b"), (wrong, HALVES[1], "w"))
        )
        both = map_of((HALVES[0], [one.address]), (HALVES[1], [two.address]))
        async with running(right, both, tmp_path) as engine:
            same, distance = agreement(known, await judged(engine))
            assert same >= 0.99 and distance < 1e-3, (same, distance)
            # A pool that has another expert where expert 1 should be: the comparison has to notice.
            exchanged = map_of((HALVES[0], [one.address]), (HALVES[1], [bad.address]), version=2)
            trunk_files(tmp_path, exchanged)
            assert (await told(engine, map_version=2))["refused"] == ""
            await engine.reset_prefix_cache()
            same, distance = agreement(known, await judged(engine))
            assert same < 0.9 and distance > 0.1, (same, distance)


async def test_requests_outlive_pools_that_are_killed(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    right, _ = checkpoints
    with contextlib.ExitStack() as stack:
        a, spare, b = (
            stack.enter_context(pool_process(right, holds, tmp_path, name))
            for holds, name in ((HALVES[0], "a"), (HALVES[0], "spare"), (HALVES[1], "b"))
        )
        pools = map_of((HALVES[0], [a.address, spare.address]), (HALVES[1], [b.address]))
        async with running(right, pools, tmp_path) as engine:
            names = [f"request-{number}" for number in range(8)]

            async def load() -> list[int]:
                tasks = [generate(engine, p, n, max_tokens=64) for p, n in zip(PROMPTS, names, strict=False)]
                return [len(output.outputs[0].token_ids) for output in await asyncio.gather(*tasks)]

            running_load = asyncio.create_task(load())
            await asyncio.sleep(0.2)
            a.kill()
            assert await asyncio.wait_for(running_load, 60) == [64] * 8
            uses = [use for use in await used(engine, names) if use is not None]
            assert [use.degraded_rows for use in uses] == [0] * 8, "a replica with the same experts was there"
            tokens = len(PROMPTS[0]) + 63
            assert [sum(part.pairs for part in use.parts) for use in uses] == [tokens * LAYERS * TOP_K] * 8
            assert all({part.pool for part in use.parts} == {"pool0", "pool1"} for use in uses)
            assert all(use.steps >= 64 and 0 < use.wait_s < use.ended_s - use.begun_s for use in uses)
            running_load = asyncio.create_task(load())
            await asyncio.sleep(0.2)
            b.kill()
            assert await asyncio.wait_for(running_load, 60) == [64] * 8
            report = await told(engine, losses=2)
            assert report["degraded_rows"] > 0
            uses = [use for use in await used(engine, names) if use is not None]
            assert all(use.degraded_rows for use in uses), "nobody else held these experts, and each request is told so"
            assert await used(engine, names) == [None] * 8


async def test_a_parked_pool_is_woken_and_a_bad_map_refused(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    right, _ = checkpoints
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(pool_process(right, HALVES[0], tmp_path, "a"))
        async with running(right, map_of((HALVES[0], [first.address]), (HALVES[1], [])), tmp_path) as engine:
            wanted = (tmp_path / "map.wanted" / "pool1").exists
            assert not wanted(), "starting wakes nothing"
            asked = asyncio.create_task(generate(engine, PROMPTS[0], "waits", max_tokens=16))
            while not wanted():
                await asyncio.sleep(0.02)
            second = await asyncio.to_thread(stack.enter_context, pool_process(right, HALVES[1], tmp_path, "b"))
            both = map_of((HALVES[0], [first.address]), (HALVES[1], [second.address]), version=2)
            trunk_files(tmp_path, both)
            waited = list((await asyncio.wait_for(asked, 60)).outputs[0].token_ids)
            (use,) = await used(engine, ["waits"])
            assert use is not None and use.degraded_rows == 0 and use.wait_s > 0.5
            nobody = map_of((HALVES[0], [first.address]), (HALVES[1], [f"unix:{tmp_path}/nobody"]), version=3)
            trunk_files(tmp_path, nobody)
            report = await told(engine, map_version=2)
            while not report["refused"]:
                report = await told(engine, map_version=2)
            assert "cannot be reached" in report["refused"]
            again = list((await generate(engine, PROMPTS[0], max_tokens=16)).outputs[0].token_ids)
            assert again == waited
