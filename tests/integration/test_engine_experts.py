"""Which experts the tokens of the embedded sparse model go to, told by a real vLLM engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from cluster.config.base import Kind
from cluster.config.model import ModelConfig
from cluster.experts.load import Counts, ExpertLoad, ExpertUse
from deployments.engines.expert_routing import NO_EXPERTS
from deployments.engines.protocol import Endpoint, EngineReply, EngineRequest
from deployments.engines.vllm_args import VllmLaunch
from deployments.engines.vllm_engine import VllmEngine
from deployments.engines.vllm_experts import LOAD_PERIOD_S
from deployments.models.sources import resolve
from tests.integration.dense_engine import answer_of, running_dense, user

# Importing vLLM and its dependencies warns about many things that are not ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
]

PROSE = "Tell a story about an old man who walks beside a river and thinks of his daughter."
CODE = "def mean(values):\n    return sum(values) / len(values)\n\nWrite the same with a class."


@contextlib.asynccontextmanager
async def running_sparse() -> AsyncIterator[VllmEngine]:
    settings = {"max_model_len": 512, "max_num_seqs": 8, "kv_cache_bytes": 64 * 2**20, "enforce_eager": True}
    model = ModelConfig.model_validate(
        {"kind": Kind.SPARSE, "roles": ("strong",), "source": "embedded:sparse", "engine": settings}
    )
    before = dict(os.environ)
    path = resolve("embedded:sparse", None, lambda _message, _done: None)
    started = VllmEngine(VllmLaunch("sparse", path, model))
    try:
        await started.start()
        yield started
    finally:
        await started.close()
        os.environ.clear()
        os.environ.update(before)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[VllmEngine]:
    async with running_sparse() as started:
        yield started


async def ask(engine: VllmEngine, text: str, *, log: int = 0, traffic: str = "", **body: Any) -> EngineReply:
    whole = {"model": "sparse", "messages": [user(text)], "temperature": 0, "max_tokens": 12, "ignore_eos": True}
    request = EngineRequest(uuid.uuid4().hex, Endpoint.CHAT, whole | body, log_experts=log, traffic=traffic)
    return await engine.run(request, lambda _: None)


def use_of(reply: EngineReply) -> ExpertUse:
    assert reply.status == 200, reply.body
    assert reply.experts is not None
    return reply.experts


def counted(use: ExpertUse) -> Counts:
    """What the logs of a request say, counted here."""
    counts = use.shape.zeros()
    for log in use.logs:
        for token in log.array(use.shape):
            for layer, chosen in enumerate(token):
                counts[layer, chosen] += 1
    return counts


async def load_of(engine: VllmEngine) -> ExpertLoad:
    await asyncio.sleep(LOAD_PERIOD_S)
    await engine.heartbeat()
    load = engine.expert_load()
    assert load is not None
    return load


async def test_the_summary_and_the_load_are_those_of_the_log(engine: VllmEngine) -> None:
    before = await load_of(engine)
    reply = await ask(engine, PROSE, log=512, traffic="story")
    use, after = use_of(reply), await load_of(engine)
    counts = counted(use)
    # The last token of an answer is sent and never read.
    tokens = reply.usage.prompt_tokens + reply.usage.completion_tokens - 1
    assert (use.tokens, [len(log.tokens) for log in use.logs], use.logs[0].left_out) == (tokens, [tokens], 0)
    assert use.distinct == np.count_nonzero(counts)
    assert (after.counts() - before.counts()).tolist() == counts.tolist()
    assert (after.traffic()["story"] - before.traffic().get("story", 0)).tolist() == counts.tolist()
    layer, expert, share = use.top[0]
    assert share == counts[layer, expert] / tokens == counts.max() / tokens


async def test_the_experts_are_those_that_the_checkpoint_chooses(engine: VllmEngine) -> None:
    import torch
    from transformers import Qwen2MoeForCausalLM

    use = use_of(await ask(engine, CODE, log=512))
    log = use.logs[0]
    told = np.sort(log.array(use.shape), axis=-1)
    path = resolve("embedded:sparse", None, lambda _message, _done: None)
    model = Qwen2MoeForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        out = model(torch.tensor([log.tokens]), output_router_logits=True)
    chosen = torch.stack([logits.topk(use.shape.top_k).indices for logits in out.router_logits], dim=1).numpy()
    same = (np.sort(chosen, axis=-1) == told).all(axis=-1)
    # Two computations in bfloat16 differ where two experts are nearly as good.
    assert same.mean() > 0.97
    assert same[:, 0].all()


async def test_what_comes_from_the_prefix_cache_used_no_experts_unless_they_are_logged(engine: VllmEngine) -> None:
    long = " ".join([PROSE] * 12)
    first = await ask(engine, long)
    again = await ask(engine, long)
    assert again.usage.cached_tokens > 0
    assert use_of(again).tokens == use_of(first).tokens - again.usage.cached_tokens
    logged = await ask(engine, long, log=512)
    assert logged.usage.cached_tokens == 0
    assert use_of(logged).tokens == use_of(first).tokens
    assert len(use_of(logged).logs[0].tokens) == use_of(first).tokens


async def test_a_log_is_cut_where_it_was_asked_to_be(engine: VllmEngine) -> None:
    use = use_of(await ask(engine, PROSE, log=10))
    assert (len(use.logs[0].tokens), use.logs[0].left_out) == (10, use.tokens - 10)


async def test_each_choice_and_each_stream_has_a_log_of_its_own(engine: VllmEngine) -> None:
    reply = await ask(engine, PROSE, log=512, n=2, temperature=1.0, seed=3)
    choices = answer_of(reply)["choices"]
    use = use_of(reply)
    assert len(choices) == len(use.logs) == 2
    prompt = reply.usage.prompt_tokens
    assert use.logs[0].tokens[:prompt] == use.logs[1].tokens[:prompt]
    assert use.logs[0].tokens[prompt:] != use.logs[1].tokens[prompt:]
    streamed = await ask(engine, PROSE, log=512, stream=True)
    assert use_of(streamed).logs[0].tokens[:prompt] == use.logs[0].tokens[:prompt]


async def test_requests_at_once_are_told_apart(engine: VllmEngine) -> None:
    before = await load_of(engine)
    replies = await asyncio.gather(
        *[ask(engine, text, log=512, traffic=name) for name, text in (("prose", PROSE), ("code", CODE)) * 3]
    )
    uses = [use_of(reply) for reply in replies]
    assert [counted(use).sum() for use in uses] == [use.tokens * 60 for use in uses]
    after = await load_of(engine)
    assert (after.counts() - before.counts()).tolist() == np.sum([counted(use) for use in uses], axis=0).tolist()
    assert uses[0].logs[0].tokens != uses[1].logs[0].tokens


async def test_a_request_that_is_left_leaves_nothing_behind(engine: VllmEngine) -> None:
    task = asyncio.create_task(ask(engine, PROSE, max_tokens=300, stream=True))
    await asyncio.sleep(0.5)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    # Its place is free again, and the next one is counted from nothing.
    reply = await ask(engine, CODE)
    assert use_of(reply).tokens == reply.usage.prompt_tokens - reply.usage.cached_tokens + 11


async def test_counting_can_stop_and_go_on(engine: VllmEngine) -> None:
    await engine.count_experts(counting=False)
    try:
        before = await load_of(engine)
        assert (await ask(engine, PROSE)).experts is None
        assert (await load_of(engine)).total == before.total
    finally:
        await engine.count_experts(counting=True)
    assert use_of(await ask(engine, PROSE)).distinct > 0


async def test_a_dense_model_says_that_it_has_none() -> None:
    async with running_dense() as dense:
        assert dense.expert_blockers == (NO_EXPERTS,)
        assert dense.expert_load() is None
        request = EngineRequest(
            "dense", Endpoint.CHAT, {"model": "dense", "messages": [user("Hello")], "max_tokens": 2}
        )
        assert (await dense.run(request, lambda _: None)).experts is None
