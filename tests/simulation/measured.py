"""Measured runs of a real engine, and the same loads on the simulated scheduler.

SmolLM2-135M in bfloat16 on vLLM 0.32, one core of two with AVX-512 for the engine, one engine alone. Figures vary by 15 %
from run to run; where a range was measured, its middle stands here. `python -m loadtests.fit_simulated` measures anew.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from deployments.engines.simulated.core import Bounds, Costs, Scheduler
from deployments.engines.simulated.sequence import Sequence

BLOCK_TOKENS = 128
MAX_NUM_SEQS = 256
MAX_BATCHED_TOKENS = 2048


@dataclass(frozen=True)
class ClosedLoop:
    """Streams that each send the next request when the last one is answered."""

    streams: int
    tokens_per_s: float
    ttft_p50_s: float | None = None
    prompt_tokens: int = 40
    max_tokens: int = 64


@dataclass(frozen=True)
class Pressure:
    """48 requests at 4/s into a KV pool that is too small for them."""

    kv_tokens: int
    tokens_per_s: float
    ttft_p50_s: float
    preemptions: int
    requests: int = 48
    per_s: float = 4.0
    prompt_tokens: int = 256
    max_tokens: int = 160

    @property
    def blocks(self) -> int:
        """Usable blocks: vLLM keeps one of the pool for itself."""
        return self.kv_tokens // BLOCK_TOKENS - 1


CLOSED = (ClosedLoop(1, 50.0), ClosedLoop(16, 425.0, 0.46), ClosedLoop(32, 500.0))
PRESSURE = (Pressure(2816, 158.0, 15.8, 37), Pressure(5760, 221.0, 7.5, 21))
"""64 MiB with keys and values in bfloat16 and in fp8, which costs no speed there."""


@dataclass(frozen=True)
class Seen:
    """What the simulated engine made of a load."""

    tokens_per_s: float
    ttft_p50_s: float
    preemptions: int


def closed_loop(costs: Costs, load: ClosedLoop) -> Seen:
    """Four rounds of a closed loop."""
    left = load.streams * 4

    def due(now: float, running: int) -> float | None:
        return None if sent_all() or running >= load.streams else now

    runner = _Runner(costs, Bounds(4096, BLOCK_TOKENS, MAX_NUM_SEQS, MAX_BATCHED_TOKENS), load)

    def sent_all() -> bool:
        return len(runner.sent) >= left

    return runner.run(due)


def pressure(costs: Costs, load: Pressure) -> Seen:
    """An open loop: a request is sent when it is due, whatever became of those before."""
    runner = _Runner(costs, Bounds(load.blocks, BLOCK_TOKENS, MAX_NUM_SEQS, MAX_BATCHED_TOKENS), load)

    def due(_now: float, _running: int) -> float | None:
        return None if len(runner.sent) >= load.requests else len(runner.sent) / load.per_s

    return runner.run(due)


class _Runner:
    """Passes the time of one load on one scheduler."""

    def __init__(self, costs: Costs, bounds: Bounds, load: ClosedLoop | Pressure) -> None:
        self._scheduler = Scheduler(bounds, costs)
        self._load = load
        self.sent: dict[str, float] = {}

    def run(self, due: Callable[[float, int], float | None]) -> Seen:
        """`due` says when the next request comes, given the time and the requests in flight; None: not now."""
        scheduler, now, tokens, done = self._scheduler, 0.0, 0, 0
        first: list[float] = []
        while True:
            while (at := due(now, len(self.sent) - done)) is not None and at <= now:
                self._send(at)
            step = scheduler.begin()
            if step is None:
                if at is None:
                    return Seen(tokens / now, statistics.median(first), scheduler.counters.preemptions)
                now = at
                continue
            now += step.duration_s
            for made in scheduler.finish(step):
                tokens += 1
                done += made.finished
                if made.index == 0:
                    first.append(now - self.sent[made.key])

    def _send(self, at: float) -> None:
        number = len(self.sent)
        # Prompts share nothing, as those that were measured.
        prompt = range(number * 100_000, number * 100_000 + self._load.prompt_tokens)
        self._scheduler.add(Sequence(str(number), prompt, self._load.max_tokens, seed=0))
        self.sent[str(number)] = at
