"""From measured runs to the parameters of a simulated engine, and back: what it would have measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deployments.engines.simulated.core import Bounds, Costs, Scheduler
from deployments.engines.simulated.sequence import Sequence as SimulatedSequence
from loadtests.stats import median


@dataclass(frozen=True, slots=True)
class DecodePoint:
    """What was measured at one number of streams. Times are seconds."""

    streams: int
    requests: int
    prompt_tokens: int
    """Tokens of one prompt, on average."""
    max_tokens: int
    step_s: float
    """Median time between two tokens of a stream."""
    tokens_per_s: float
    ttft_p50_s: float


@dataclass(frozen=True, slots=True)
class PrefillPoint:
    """Time to the first token of a prompt that came alone, seconds."""

    prompt_tokens: int
    ttft_s: float


@dataclass(frozen=True, slots=True)
class Check:
    """A measured point beside what the simulated engine makes of it."""

    point: DecodePoint
    step_s: float
    tokens_per_s: float
    ttft_p50_s: float

    @property
    def error(self) -> float:
        """Relative error of tokens/s."""
        return self.tokens_per_s / self.point.tokens_per_s - 1


def fit(decode: Sequence[DecodePoint], prefill: Sequence[PrefillPoint]) -> Costs:
    """Costs by least squares of the relative error: a step is `base + streams * per_seq`, prefill a straight line.

    Raises `ValueError` if there are fewer than two different points of a kind, or if time does not grow with tokens.
    """
    if len({point.streams for point in decode}) < 2 or len({point.prompt_tokens for point in prefill}) < 2:
        raise ValueError("a line needs two points: measure more numbers of streams and more lengths of prompts")
    base, per_seq = _line([point.streams for point in decode], [point.step_s for point in decode])
    _, per_token = _line([point.prompt_tokens for point in prefill], [point.ttft_s for point in prefill])
    if per_token <= 0:
        raise ValueError("longer prompts did not take longer: measure longer ones, on a quiet machine")
    return Costs(1 / per_token, max(base, 0.0), max(per_seq, 0.0))


def check(costs: Costs, bounds: Bounds, decode: Sequence[DecodePoint]) -> list[Check]:
    """What the simulated engine with these costs does at each measured point."""
    return [_replay(costs, bounds, point) for point in decode]


def _line(xs: Sequence[int], ys: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope that make the sum of squared relative errors least."""
    weights = 1 / np.asarray(ys)
    columns = np.stack([weights, np.asarray(xs) * weights], axis=1)
    solution, *_ = np.linalg.lstsq(columns, np.ones(len(ys)), rcond=None)
    return float(solution[0]), float(solution[1])


def _replay(costs: Costs, bounds: Bounds, point: DecodePoint) -> Check:
    """The closed loop that was measured, on the simulated scheduler."""
    scheduler = Scheduler(bounds, costs)
    now = 0.0
    sent: dict[str, float] = {}
    last: dict[str, float] = {}
    first: list[float] = []
    gaps: list[float] = []

    def send() -> None:
        number = len(sent)
        if number < point.requests:
            key = str(number)
            # Prompts share nothing, as those that were measured.
            prompt = range(number * 100_000, number * 100_000 + max(1, point.prompt_tokens))
            scheduler.add(SimulatedSequence(key, prompt, point.max_tokens, seed=0))
            sent[key] = now

    for _ in range(point.streams):
        send()
    tokens = 0
    while (step := scheduler.begin()) is not None:
        now += step.duration_s
        for made in scheduler.finish(step):
            tokens += 1
            if made.index == 0:
                first.append(now - sent[made.key])
            else:
                gaps.append(now - last[made.key])
            last[made.key] = now
            if made.finished:
                send()
    return Check(point, median(gaps), tokens / now, median(first))
