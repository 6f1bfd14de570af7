"""A real engine changes the precision of its KV cache while it runs: nothing is lost, nothing is mixed up, nothing leaks."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
import pytest_asyncio

from deployments.engines.kv_precision import KvPrecisionError
from deployments.engines.protocol import Endpoint, EngineReply
from deployments.engines.vllm_engine import VllmEngine
from tests.integration.dense_engine import Call, answer_of, prompt_ids, running_dense, user
from tests.waiting import until

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # Importing vLLM and its dependencies warns about many things that are not ours.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.fp8_kv,
]

STREAMS = 16
BLOCK_TOKENS = 128
PAUSE_S = 3 * 0.5
"""Three times the half second that a change may take: the machine that runs the tests may be busy."""
IN_FLIGHT = [f"Question {number}: what is the capital of France and why is it famous?" for number in range(STREAMS)]
LONG = "A lighthouse keeper's day, told again. " * 44
"""More than 384 tokens: three blocks and some of a fourth."""
LONGER = "The sea was calm and the sky was wide, and nobody came by that day. " * 46
"""About 800 tokens: seven steps of 128."""
GREEDY = ("What is the capital of France?", "Name three colours.", "Why is the sky blue?", LONG)
TEXT_TOKENS = 16


async def said(engine: VllmEngine, prompt: str) -> tuple[str, str]:
    """A greedy answer, and the same again with the prompt in the prefix cache where it is long enough."""
    first, second = [
        answer_of(await Call(engine).chat(prompt, max_tokens=TEXT_TOKENS, ignore_eos=True)) for _ in range(2)
    ]
    return first["choices"][0]["message"]["content"], second["choices"][0]["message"]["content"]


@dataclass
class Never:
    """What the engine said before its precision was ever changed."""

    greedy: dict[str, tuple[str, str]]
    streams: list[list[int]]


@dataclass
class Streaming:
    """A stream under way."""

    call: Call
    task: asyncio.Task[EngineReply]

    @property
    def ids(self) -> list[int]:
        return [token for c in self.call.chunks for part in c["choices"] for token in part.get("token_ids") or ()]


def start(engine: VllmEngine, prompt: str, tokens: int, **body: Any) -> Streaming:
    call = Call(engine)
    asked = {"max_tokens": tokens, "ignore_eos": True, "stream": True, "return_token_ids": True, **body}
    return Streaming(call, asyncio.create_task(call.chat(prompt, **asked)))


async def reading(engine: VllmEngine) -> None:
    """Returns once a prompt is being read."""
    async with asyncio.timeout(20):
        while engine.stats().kv_usage == 0.0:
            await engine.heartbeat()


async def idle(engine: VllmEngine) -> None:
    """Returns once nothing runs, waits or holds a block."""
    async with asyncio.timeout(10):
        while True:
            await engine.heartbeat()
            stats = engine.stats()
            if (stats.running, stats.waiting, stats.kv_usage) == (0, 0, 0.0):
                return
            await asyncio.sleep(0.02)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[VllmEngine]:
    async with running_dense(
        max_num_seqs=STREAMS, max_num_batched_tokens=BLOCK_TOKENS, kv_cache_bytes=128 * 2**20
    ) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def never(engine: VllmEngine) -> Never:
    assert engine.stats().kv_switches == 0
    greedy = {prompt: await said(engine, prompt) for prompt in GREEDY}
    streams = [start(engine, prompt, TEXT_TOKENS) for prompt in IN_FLIGHT]
    await asyncio.gather(*(stream.task for stream in streams))
    return Never(greedy, [stream.ids for stream in streams])


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def own_precision(engine: VllmEngine) -> AsyncIterator[None]:
    """Each test starts and ends with the model's own precision and an idle engine."""
    await idle(engine)
    yield
    await engine.set_kv_precision("auto")
    await idle(engine)
    assert engine.stats().kv_precision == "bfloat16"


async def test_an_engine_says_what_it_can_change_to(engine: VllmEngine) -> None:
    assert engine.kv_precisions == ("auto", "fp8")
    assert engine.kv_blockers == ()
    assert engine.stats().kv_precision == "bfloat16"


async def test_sixteen_streams_live_through_a_change(engine: VllmEngine, never: Never) -> None:
    tokens = 64
    before = engine.stats()
    streams = [start(engine, prompt, tokens) for prompt in IN_FLIGHT]
    await until(lambda: all(len(stream.ids) >= 8 for stream in streams), timeout_s=30)
    switch = await engine.set_kv_precision("fp8")
    sent = [(stream.ids, stream.call.text) for stream in streams]
    replies = await asyncio.gather(*(stream.task for stream in streams))

    assert switch.pause_s <= PAUSE_S
    assert (switch.before, switch.after, switch.preempted) == ("bfloat16", "fp8", STREAMS)
    assert switch.tokens >= STREAMS * (8 + 20)
    assert switch.blocks_after >= 2 * switch.blocks_before - 2

    tokenizer = engine._layer.renderer.renderer.get_tokenizer()
    for stream, reply, (ids, text) in zip(streams, replies, sent, strict=True):
        assert (reply.status, reply.finish_reason) == (200, "length")
        assert reply.usage.completion_tokens == len(stream.ids) == tokens
        # Every token came in an event of its own unless two were ready at once; none came twice.
        assert len([chunk for chunk in stream.call.chunks if chunk["choices"]]) <= tokens + 1
        assert stream.call.text == tokenizer.decode(stream.ids, skip_special_tokens=True)
        assert stream.ids[: len(ids)] == ids
        assert stream.call.text.startswith(text)
        assert (reply.kv.precision, reply.kv.switches, reply.kv.preemptions) == ("fp8", 1, 1)
        # At least its prompt and what it had said.
        assert reply.kv.recomputed_tokens >= 20 + 8
    # What was sent before is what a run without any change says. Steps of another make-up round otherwise, which may tip
    # one of two tokens that are equally likely.
    known = [ids[: len(plain)] == plain[: len(ids)] for (ids, _), plain in zip(sent, never.streams, strict=True)]
    assert sum(known) >= STREAMS - 3

    await engine.heartbeat()
    after = engine.stats()
    assert (after.kv_precision, after.kv_switches) == ("fp8", before.kv_switches + 1)
    assert after.forced_preemptions - before.forced_preemptions == STREAMS
    assert after.preemptions == before.preemptions == 0
    assert after.kv_blocks == switch.blocks_after
    recomputed = after.recomputed_tokens - before.recomputed_tokens
    assert recomputed == sum(reply.kv.recomputed_tokens for reply in replies) > 0


async def test_back_again_it_says_exactly_what_it_said(engine: VllmEngine, never: Never) -> None:
    blocks = engine.stats().kv_blocks
    await engine.set_kv_precision("fp8")
    lowered = [start(engine, prompt, TEXT_TOKENS) for prompt in GREEDY]
    assert [(await one.task).usage.completion_tokens for one in lowered] == [TEXT_TOKENS] * len(GREEDY)
    switch = await engine.set_kv_precision("auto")
    assert (switch.before, switch.after, switch.blocks_after) == ("fp8", "bfloat16", blocks)
    assert {prompt: await said(engine, prompt) for prompt in GREEDY} == never.greedy


async def test_a_cached_prefix_is_never_found_by_another_precision(engine: VllmEngine) -> None:
    async def cached() -> int:
        return (await Call(engine).chat("Cached? " + LONG, max_tokens=1)).usage.cached_tokens

    assert [await cached(), await cached()] == [0, 3 * BLOCK_TOKENS]
    for precision in ("fp8", "auto", "fp8"):
        await engine.set_kv_precision(precision)
        assert [await cached(), await cached()] == [0, 3 * BLOCK_TOKENS]
    # What a change costs is told from how fast prompts were read.
    assert 50 < engine.stats().prefill_tokens_per_s < 100_000


async def test_a_prompt_that_is_half_read_is_read_again(engine: VllmEngine) -> None:
    prompt = len(await prompt_ids(engine, messages=[user(LONGER)]))
    assert 6 * BLOCK_TOKENS < prompt < 8 * BLOCK_TOKENS
    stream = start(engine, LONGER, TEXT_TOKENS)
    await reading(engine)
    switch = await engine.set_kv_precision("fp8")
    assert stream.ids == []
    assert 0 < switch.tokens < prompt
    assert switch.tokens % BLOCK_TOKENS == 0
    reply = await stream.task
    assert (reply.status, reply.usage.completion_tokens, reply.usage.prompt_tokens) == (200, TEXT_TOKENS, prompt)
    assert (reply.kv.switches, reply.kv.recomputed_tokens) == (1, switch.tokens)
    # No token of it was computed in the other precision, so it says what an fp8 engine says.
    await engine.set_kv_precision("auto")
    await engine.set_kv_precision("fp8")
    alone = start(engine, LONGER, TEXT_TOKENS)
    await alone.task
    assert stream.ids == alone.ids


async def test_log_probabilities_of_a_prompt_that_is_half_read_are_whole(engine: VllmEngine) -> None:
    body = {"prompt": LONGER, "max_tokens": 2, "echo": True, "logprobs": 1, "temperature": 0, "ignore_eos": True}
    asked = asyncio.create_task(Call(engine).run(Endpoint.COMPLETION, **body))
    await reading(engine)
    switch = await engine.set_kv_precision("fp8")
    reply = await asked
    told = answer_of(reply)["choices"][0]["logprobs"]
    assert 0 < switch.tokens < reply.usage.prompt_tokens
    assert len(told["tokens"]) == reply.usage.total
    assert all(-30 < one <= 0 for one in told["token_logprobs"][1:])


async def test_a_seed_holds_through_a_change(engine: VllmEngine) -> None:
    tokens = 60
    hot = {"temperature": 1.0, "seed": 11}
    unchanged = start(engine, "Tell a story.", tokens, **hot)
    await unchanged.task
    changed = start(engine, "Tell a story.", tokens, **hot)
    await until(lambda: len(changed.ids) >= 20, timeout_s=20)
    await engine.set_kv_precision("fp8")
    sent = changed.ids
    reply = await changed.task
    assert (reply.usage.completion_tokens, len(changed.ids), reply.kv.switches) == (tokens, tokens, 1)
    assert sent == unchanged.ids[: len(sent)] == changed.ids[: len(sent)]


async def test_several_choices_of_a_request_live_through_a_change(engine: VllmEngine) -> None:
    body = {"n": 3, "temperature": 1.0, "seed": 5, "stream_options": {"include_usage": True}}
    stream = start(engine, "Say something.", 40, **body)
    await until(lambda: len(stream.ids) >= 30, timeout_s=20)
    switch = await engine.set_kv_precision("fp8")
    reply = await stream.task
    assert (switch.preempted, reply.kv.preemptions, reply.kv.switches) == (3, 3, 3)
    assert reply.usage.completion_tokens == len(stream.ids) == 3 * 40
    assert reply.kv.recomputed_tokens <= switch.tokens


async def test_who_leaves_during_a_change_leaves_nothing_behind(engine: VllmEngine) -> None:
    streams = [start(engine, prompt, 400) for prompt in IN_FLIGHT[:8]]
    await until(lambda: all(stream.ids for stream in streams), timeout_s=20)
    change = asyncio.create_task(engine.set_kv_precision("fp8"))
    await asyncio.sleep(0)
    for stream in streams[:6]:
        stream.task.cancel()
    assert (await change).preempted >= 2
    for stream in streams[6:]:
        stream.task.cancel()
    ended = await asyncio.gather(*(stream.task for stream in streams), return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ended)
    await idle(engine)


async def test_a_schema_is_kept_to_through_changes(engine: VllmEngine) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 60, "maxLength": 90},
            "ages": {"type": "array", "items": {"type": "integer", "maximum": 120}, "minItems": 3, "maxItems": 5},
        },
        "required": ["name", "ages"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    body = {"ignore_eos": False, "response_format": form, "temperature": 1.0, "seed": 2}
    stream = start(engine, "Describe Ada, 36 years old.", 300, **body)
    for number, precision in enumerate(("fp8", "auto"), 1):
        await until(lambda number=number: len(stream.ids) >= 5 * number, timeout_s=20)
        await engine.set_kv_precision(precision)
    reply = await stream.task
    assert (reply.status, reply.finish_reason, reply.kv.switches) == (200, "stop", 2)
    person = json.loads(stream.call.text)
    assert set(person) == {"name", "ages"}
    assert 60 <= len(person["name"]) <= 90


@pytest.mark.timeout(240)
async def test_two_hundred_changes_leak_nothing(engine: VllmEngine) -> None:
    process = psutil.Process(engine.pids()[0])
    blocks: dict[str, set[int]] = {"auto": set(), "fp8": set()}
    resident = []
    replies: list[EngineReply] = []

    async def ask_on(prompt: str) -> None:
        while True:
            replies.append(await start(engine, prompt, 12).task)

    asking = [asyncio.create_task(ask_on(prompt)) for prompt in IN_FLIGHT[:2]]
    for number in range(1, 201):
        precision = "fp8" if number % 2 else "auto"
        switch = await engine.set_kv_precision(precision)
        blocks[precision].add(switch.blocks_after)
        if number in (20, 200):
            resident.append(process.memory_info().rss)
    for task in asking:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await idle(engine)
    assert resident[1] - resident[0] < 64 * 2**20
    assert [len(seen) for seen in blocks.values()] == [1, 1]
    assert len(replies) >= 6
    assert all((reply.status, reply.usage.completion_tokens) == (200, 12) for reply in replies)
    assert max(reply.kv.switches for reply in replies) >= 2


async def test_what_it_cannot_be_is_refused_by_name(engine: VllmEngine) -> None:
    before = engine.stats()
    with pytest.raises(KvPrecisionError, match=r"int4.*auto or fp8"):
        await engine.set_kv_precision("int4")
    assert engine.stats() == before
    same = await engine.set_kv_precision("auto")
    assert (same.before, same.after, same.pause_s, same.preempted) == ("bfloat16", "bfloat16", 0.0, 0)
    assert engine.stats() == before


async def test_changes_come_one_after_the_other(engine: VllmEngine) -> None:
    before = engine.stats().kv_switches
    stream = start(engine, IN_FLIGHT[0], 40)
    await until(lambda: len(stream.ids) >= 4, timeout_s=20)
    first, again, back = await asyncio.gather(*(engine.set_kv_precision(one) for one in ("fp8", "fp8", "auto")))
    assert (first.before, first.after, first.preempted) == ("bfloat16", "fp8", 1)
    assert (again.before, again.after, again.preempted) == ("fp8", "fp8", 0)
    assert (back.before, back.after) == ("fp8", "bfloat16")
    assert (first.blocks_before, first.blocks_after) == (back.blocks_after, back.blocks_before)
    assert engine.stats().kv_switches == before + 2
    assert (await stream.task).usage.completion_tokens == len(stream.ids) == 40


async def test_who_asks_for_a_change_and_gives_up_leaves_the_books_right(engine: VllmEngine) -> None:
    before = engine.stats()
    impatient = asyncio.create_task(engine.set_kv_precision("fp8"))
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    await until(lambda: engine.stats().kv_precision == "fp8")
    assert engine.stats().kv_switches == before.kv_switches + 1
    assert engine.stats().kv_blocks >= 2 * before.kv_blocks - 2
    switch = await engine.set_kv_precision("auto")
    assert (switch.before, switch.blocks_after) == ("fp8", before.kv_blocks)
