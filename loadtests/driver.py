"""Closed-loop streaming load: a fixed number of streams, each sending its next request when the last one ended."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from loadtests.client import Connection, Exchange
from loadtests.events import record_of
from loadtests.http1 import encode_request
from loadtests.prompts import story_prompt
from loadtests.records import RequestRecord, RunSummary, summarise
from loadtests.targets import Target

MAX_STREAMS: Final = 512
MAX_REQUESTS: Final = 20_000
MAX_SECONDS: Final = 3600.0
_WARM_UP_SEED: Final = 1_000_003
_WARM_UP_TOKENS: Final = 8
_UNREAD: Final = 256
"""Responses kept unread. Reading them takes CPU that the server under test would get, so it waits, but not for ever."""

PromptMaker = Callable[[int, int], str]
"""(seed, index) to the text of a prompt."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """One run. It ends after `requests` requests or `seconds`, whichever comes first."""

    target: Target
    model: str
    streams: int = 16
    requests: int = 64
    seconds: float = 300.0
    max_tokens: int = 64
    """Tokens that each answer may have; the prompts are made to use them all."""
    warm_up: int = 16
    """Requests before the measured ones, of 8 tokens each, in as many streams."""
    seed: int = 0
    """Which series of prompts. Two runs with one seed send the same prompts."""
    request_timeout_s: float = 120.0
    ignore_eos: bool = False
    """Ask for exactly `max_tokens` tokens. Not part of OpenAI's API; vLLM and Pointsman take it, others may refuse."""
    prompt: PromptMaker = story_prompt

    def __post_init__(self) -> None:
        bounds = (
            ("streams", self.streams, 1, MAX_STREAMS),
            ("requests", self.requests, 1, MAX_REQUESTS),
            ("seconds", self.seconds, 0.1, MAX_SECONDS),
            ("max_tokens", self.max_tokens, 1, 100_000),
            ("warm_up", self.warm_up, 0, MAX_REQUESTS),
        )
        for name, value, least, most in bounds:
            if not least <= value <= most:
                raise ValueError(f"{name} is {value}; it may be {least} to {most}")


async def drive(plan: LoadPlan) -> RunSummary:
    """Run the plan and return its figures. Failed requests are counted, not raised."""
    connections = [Connection(plan.target) for _ in range(plan.streams)]
    try:
        if plan.warm_up:
            await _Phase(plan, _WARM_UP_SEED + plan.seed, plan.warm_up, _WARM_UP_TOKENS).run(connections)
        # A collection in the middle of a run would be measured as a stall of the server.
        gc.collect()
        gc.disable()
        before = time.process_time()
        try:
            records = await _Phase(plan, plan.seed, plan.requests, plan.max_tokens).run(connections)
            used = time.process_time() - before
        finally:
            gc.enable()
    finally:
        for connection in connections:
            connection.close()
    return summarise(records, plan.streams, used)


def request_body(plan: LoadPlan, prompt: str, max_tokens: int) -> dict[str, object]:
    """The body of one request: greedy, streamed, with usage."""
    body: dict[str, object] = {
        "model": plan.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if plan.ignore_eos:
        body["ignore_eos"] = True
    return body


def encode_chat(target: Target, body: dict[str, object]) -> bytes:
    """The request as it goes over the wire."""
    headers = [("content-type", "application/json"), ("accept", "text/event-stream")]
    if target.key is not None:
        headers.append(("authorization", f"Bearer {target.key}"))
    payload = json.dumps(body, separators=(",", ":")).encode()
    return encode_request("POST", f"{target.prefix}/chat/completions", target.authority, tuple(headers), payload)


class _Phase:
    """All streams of a warm-up or of a measurement. Finished exchanges are read into records when too many wait."""

    def __init__(self, plan: LoadPlan, seed: int, requests: int, max_tokens: int) -> None:
        self._plan = plan
        self._seed = seed
        self._max_tokens = max_tokens
        self._indices = iter(range(requests))
        self._deadline = time.perf_counter() + plan.seconds
        self._refused = 0
        self._unread: list[Exchange] = []
        self._records: list[RequestRecord] = []

    async def run(self, connections: Sequence[Connection]) -> list[RequestRecord]:
        """Until the requests were sent or the time is up; requests in flight are finished."""
        await asyncio.gather(*(self._stream(connection) for connection in connections))
        self._read()
        return self._records

    async def _stream(self, connection: Connection) -> None:
        plan = self._plan
        for index in self._indices:
            body = request_body(plan, plan.prompt(self._seed, index), self._max_tokens)
            exchange = await connection.send(encode_chat(plan.target, body), plan.request_timeout_s)
            self._unread.append(exchange)
            if len(self._unread) >= _UNREAD:
                self._read()
            if time.perf_counter() >= self._deadline:
                return
            if exchange.status != 200:
                # A server that refuses at once would otherwise be asked as fast as this client can.
                self._refused += 1
                await asyncio.sleep(min(0.01 * self._refused, 0.5))

    def _read(self) -> None:
        self._records.extend(record_of(exchange) for exchange in self._unread)
        self._unread.clear()
