"""How fast an engine at rest is: what the pressure scenario computes its rate from.

A load that is three times a pool on one machine is ten times the processor on a slower one, and no memory helps against that.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from cluster.config.engine import SimulatedConfig
from loadtests.client import Connection
from loadtests.driver import encode_chat
from loadtests.events import record_of
from loadtests.prompts import story_prompt
from loadtests.records import RequestRecord
from loadtests.running_cluster import ClusterError
from loadtests.stats import median
from loadtests.targets import Target

REPEATS: Final = 3
STREAMS: Final = 4
"""As many as a small pool holds without pressure."""
ANSWER_TOKENS: Final = 32
PROMPT_SENTENCES: Final = 8
"""About 430 tokens."""
TIMEOUT_S: Final = 60.0


async def speed_of(target: Target, model: str) -> SimulatedConfig:
    """Speed of prompts, and of a step by its sequences, medians; in the terms of the simulated engine. Raises `ClusterError`."""
    # No prompt is one of an earlier measurement: it would be in the prefix cache.
    seed = time.time_ns() // 1_000_000
    prompts: list[float] = []
    alone: list[float] = []
    together: list[float] = []
    for number in range(REPEATS):
        series = seed * 100 + number * 10
        long = " ".join(story_prompt(series, index) for index in range(PROMPT_SENTENCES))
        (read,) = await _ask(target, model, [long], 2)
        prompts.append(read.prompt_tokens / max(read.ttft_s or 0.0, 1e-6))
        short = [story_prompt(series + 1, index) for index in range(1 + STREAMS)]
        alone.extend(_step_s(one) for one in await _ask(target, model, short[:1], ANSWER_TOKENS))
        together.extend(_step_s(one) for one in await _ask(target, model, short[1:], ANSWER_TOKENS))
    return fitted(median(prompts), median(alone), median(together))


def fitted(prompt_tokens_per_s: float, alone_s: float, together_s: float) -> SimulatedConfig:
    """The line through a step of one sequence and one of `STREAMS`; a step does not get shorter by sequences."""
    per_seq_s = max(0.0, (together_s - alone_s) / (STREAMS - 1))
    return SimulatedConfig(
        prefill_tokens_per_s=prompt_tokens_per_s,
        decode_step_base_s=max(0.0, alone_s - per_seq_s),
        decode_step_per_seq_s=per_seq_s,
    )


async def _ask(target: Target, model: str, prompts: list[str], max_tokens: int) -> list[RequestRecord]:
    connections = [Connection(target) for _ in prompts]

    async def one(connection: Connection, prompt: str) -> RequestRecord:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0.7,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        record = record_of(await connection.send(encode_chat(target, body), TIMEOUT_S))
        if record.error is not None:
            raise ClusterError(f"{model} does not answer at rest: {record.error}")
        return record

    try:
        return list(await asyncio.gather(*map(one, connections, prompts)))
    finally:
        for connection in connections:
            connection.close()
        await asyncio.sleep(0)


def _step_s(record: RequestRecord) -> float:
    """Seconds from one token to the next."""
    return (record.e2e_s - (record.ttft_s or 0.0)) / max(1, record.completion_tokens - 1)
