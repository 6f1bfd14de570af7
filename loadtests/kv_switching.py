"""A real engine in this process, streams on it, and changes of its KV precision while they run."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import psutil

from cluster.api.json_body import JsonObject
from cluster.config.model import ModelConfig
from deployments.engines.kv_precision import KvSwitch, KvUse
from deployments.engines.protocol import Endpoint, EngineReply, EngineRequest
from deployments.engines.vllm_args import VllmLaunch
from deployments.engines.vllm_engine import VllmEngine
from loadtests.prompts import long_prompt, story_prompt

NAME = "measured"
"""What the engine calls its model."""
PROMPT_WORDS = 110
"""With the story before it, a prompt of about 200 tokens."""
LEAKING_STREAMS = 2
"""Streams that are kept in flight while memory is watched."""
FIRST_WATCHED = 20
"""Changes before memory is read for the first time: by then everything was allocated once."""


class SwitchError(RuntimeError):
    """A request failed, so the figures mean nothing."""


@dataclass(slots=True)
class Stream:
    """One answer as it came."""

    prompt: str
    arrivals: list[float] = field(default_factory=list)
    """When tokens came, by the clock of `time.perf_counter`."""
    prompt_ids: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    text: str = ""
    kv: KvUse = field(default_factory=KvUse)

    def take(self, events: bytes) -> None:
        """What the engine emits."""
        now = time.perf_counter()
        for event in events.decode().split("\n\n"):
            if not event:
                continue
            told = json.loads(event.removeprefix("data: "))
            self.prompt_ids = told.get("prompt_token_ids") or self.prompt_ids
            for choice in told["choices"]:
                if tokens := choice.get("token_ids"):
                    self.arrivals.append(now)
                    self.ids += tokens
                self.text += choice["delta"].get("content") or ""

    def gap_over(self, start: float, end: float) -> float | None:
        """Seconds of the longest gap that lies in a window or reaches into it; None if none does."""
        pairs = itertools.pairwise(self.arrivals)
        return max((later - earlier for earlier, later in pairs if later > start and earlier < end), default=None)

    def longest_gap(self, start: float, end: float) -> float:
        """The longest time between two arrivals in a window; 0 if it has fewer than two."""
        inside = [arrival for arrival in self.arrivals if start <= arrival <= end]
        return max((later - earlier for earlier, later in itertools.pairwise(inside)), default=0.0)


@dataclass(frozen=True, slots=True)
class Change:
    """A change of precision, and what the streams saw of it."""

    switch: KvSwitch
    gaps_s: tuple[float, ...]
    """For each stream in flight, the gap that the change fell into."""
    sent: tuple[tuple[int, ...], ...]
    """For each stream the tokens that it had sent before."""


@dataclass(frozen=True, slots=True)
class Round:
    """Streams that started together, and the changes that they lived through."""

    streams: tuple[Stream, ...]
    changes: tuple[Change, ...]
    quiet_gap_s: float
    """The longest gap of any stream while all of them were decoding and nothing changed."""


@dataclass(frozen=True, slots=True)
class Score:
    """How likely an answer is to the model in its own precision, token by token, each after those that were said."""

    mean_logprob: float
    greedy_share: float
    """Share of its tokens that are the most likely one there."""


def in_flight_prompt(seed: int, index: int) -> str:
    """About 200 tokens, unlike every other from the first words on."""
    return f"{long_prompt(seed, index, PROMPT_WORDS)} {story_prompt(seed, index)}"


@asynccontextmanager
async def running(folder: Path, model: ModelConfig) -> AsyncIterator[VllmEngine]:
    """A started engine. Raises `EngineStartError`."""
    engine = VllmEngine(VllmLaunch(NAME, folder, model))
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()


async def ask(
    engine: VllmEngine, body: dict[str, Any], emit: Callable[[bytes], None], endpoint: Endpoint = Endpoint.CHAT
) -> EngineReply:
    """Serve one request. Raises `SwitchError` unless it succeeds."""
    request = EngineRequest(uuid.uuid4().hex, endpoint, cast("JsonObject", {"model": NAME, **body}))
    reply = await engine.run(request, emit)
    if reply.status != 200:
        raise SwitchError(f"a request failed with {reply.status}: {reply.body.decode()}")
    return reply


async def stream(engine: VllmEngine, into: Stream, tokens: int) -> None:
    """Fill in a greedy answer of exactly so many tokens."""
    body = {
        "messages": [{"role": "user", "content": into.prompt}],
        "temperature": 0,
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }
    reply = await ask(engine, body, into.take)
    if not reply.usage.completion_tokens == len(into.ids) == tokens:
        raise SwitchError(f"{reply.usage.completion_tokens} tokens were made and {len(into.ids)} sent, not {tokens}")
    into.kv = reply.kv


async def one_round(engine: VllmEngine, prompts: Sequence[str], tokens: int, at: dict[int, str]) -> Round:
    """Streams that run to their end; when each has sent so many tokens as `at` says, the precision changes to its value."""
    streams = tuple(Stream(prompt) for prompt in prompts)
    tasks = [asyncio.create_task(stream(engine, one, tokens)) for one in streams]
    changes = []
    for sent, precision in sorted(at.items()):
        await _until_sent(streams, tasks, sent)
        moment, before = time.perf_counter(), tuple(tuple(one.ids) for one in streams)
        switch = await engine.set_kv_precision(precision)
        changes.append((moment, time.perf_counter(), before, switch))
    await asyncio.gather(*tasks)
    told = tuple(
        Change(switch, tuple(gap for one in streams if (gap := one.gap_over(start, end)) is not None), before)
        for start, end, before, switch in changes
    )
    decoding = max(one.arrivals[0] for one in streams)
    end = min([start for start, _, _, _ in changes], default=min(one.arrivals[-1] for one in streams))
    return Round(streams, told, max(one.longest_gap(decoding, end) for one in streams))


async def _until_sent(streams: Sequence[Stream], tasks: Sequence[asyncio.Task[None]], tokens: int) -> None:
    while min(len(one.ids) for one in streams) < tokens:
        for task in tasks:
            if task.done():
                task.result()
                raise SwitchError("a stream ended before the change: ask for more tokens")
        await asyncio.sleep(0.002)


async def greedy_answers(engine: VllmEngine, prompts: Sequence[str], tokens: int) -> list[tuple[int, ...]]:
    """Answers one after the other, so that each is computed alone."""
    said = []
    for prompt in prompts:
        alone = Stream(prompt)
        await stream(engine, alone, tokens)
        said.append(tuple(alone.ids))
    return said


async def score(engine: VllmEngine, answer: Stream) -> Score:
    """Teacher-forced: the answer is given, and the model says how likely each of its tokens was."""
    body = {"prompt": answer.prompt_ids + answer.ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
    reply = await ask(engine, body, lambda _: None, Endpoint.COMPLETION)
    told = json.loads(reply.body)["choices"][0]["prompt_logprobs"][len(answer.prompt_ids) :]
    found = [position[str(token)] for position, token in zip(told, answer.ids, strict=True)]
    return Score(
        sum(token["logprob"] for token in found) / len(found), sum(token["rank"] == 1 for token in found) / len(found)
    )


async def growth(engine: VllmEngine, prompts: Sequence[str], switches: int) -> tuple[int, int]:
    """Change the precision so often with a few streams in flight: bytes that the engine's process grew by, and streams served.

    Memory is read after the 20th change and after the last.
    """
    process = psutil.Process(engine.pids()[0])
    served = 0

    async def ask_on(prompt: str) -> None:
        nonlocal served
        while True:
            await stream(engine, Stream(prompt), 12)
            served += 1

    tasks = [asyncio.create_task(ask_on(prompt)) for prompt in prompts[:LEAKING_STREAMS]]
    try:
        first = process.memory_info().rss
        for number in range(switches):
            await engine.set_kv_precision("auto" if number % 2 else "fp8")
            if number + 1 == min(FIRST_WATCHED, switches):
                first = process.memory_info().rss
            for task in tasks:
                if task.done():
                    task.result()
        return process.memory_info().rss - first, served
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await engine.set_kv_precision("auto")
