"""What a lower KV precision changes in a model's answers, in three figures with their intervals. Arithmetic only.

Both precisions are told of by the likeliest next tokens that each gave at the same places of the same texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

Likeliest: TypeAlias = Mapping[int, float]
"""Log-probability, nats, by token id, of the likeliest next tokens at one position."""

RESAMPLES: Final = 20_000
_FLOOR: Final = 2.0**-23
"""Log-probabilities come in float32; a rest below its resolution is one of rounding."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One prompt: its own answer read at both precisions, and whether the lower one gives that answer by itself."""

    positions: int
    """Tokens of the answer, each of which was compared."""
    agreed: int
    """Positions at which both have the same likeliest token."""
    divergence: float
    """Sum of `divergence` over the positions, nats."""
    covered: float
    """Sum over the positions of `covered`."""
    same_answer: bool


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with the bounds of its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Quality:
    """What a lower KV precision leaves of a model's answers."""

    agreement: Interval
    """Share of positions, 0 to 1, with the same likeliest token."""
    kl: Interval
    """Mean divergence per position, nats; a lower bound, see `divergence`."""
    consistency: Interval
    """Share of prompts, 0 to 1, whose greedy answer is the same."""
    covered: float
    """Share of the own probability, 0 to 1, that lies on tokens compared one by one; the rest is compared as one."""
    prompts: int
    positions: int


def divergence(own: Likeliest, lower: Likeliest) -> float:
    """KL(own || lower) of the next token, nats, from the likeliest tokens of both: a lower bound of the true one.

    Tokens that both tell of are compared one by one, all others as one event. Merging outcomes is processing of the
    data, and that never makes a divergence larger (data-processing inequality: Cover and Thomas, Elements of
    Information Theory, 2nd edition, section 2.8 and, for relative entropy, 4.4; Csiszar 1967). What it hides is
    differences among tokens that are unlikely in one of the two; `covered` says how much probability is not merged.
    """
    total, own_rest, lower_rest = 0.0, 1.0, 1.0
    for token, own_log in own.items():
        lower_log = lower.get(token)
        if lower_log is not None:
            probability = math.exp(own_log)
            total += probability * (own_log - lower_log)
            own_rest -= probability
            lower_rest -= math.exp(lower_log)
    own_rest, lower_rest = max(own_rest, _FLOOR), max(lower_rest, _FLOOR)
    # Rounding can take the sum below zero, which no divergence is.
    return max(0.0, total + own_rest * math.log(own_rest / lower_rest))


def covered(own: Likeliest, lower: Likeliest) -> float:
    """Own probability, 0 to 1, of the tokens that both tell of."""
    return min(1.0, sum(math.exp(log) for token, log in own.items() if token in lower))


def likeliest(told: Likeliest) -> int:
    """The most likely token; of several the first in the vocabulary, as a greedy sampler takes it. None: `ValueError`."""
    if not told:
        raise ValueError("there is no likeliest token of none")
    return min(told, key=lambda token: (-told[token], token))


def compare(own: Sequence[Likeliest], lower: Sequence[Likeliest], same_answer: bool) -> Compared:
    """One prompt's figures from both readings of its answer. Raises `ValueError` if these differ in length."""
    pairs = list(zip(own, lower, strict=True))
    return Compared(
        positions=len(pairs),
        agreed=sum(likeliest(one) == likeliest(other) for one, other in pairs),
        divergence=math.fsum(divergence(one, other) for one, other in pairs),
        covered=math.fsum(covered(one, other) for one, other in pairs),
        same_answer=same_answer,
    )


def summarise(compared: Sequence[Compared], seed: int = 0) -> Quality:
    """The figures of all prompts. Raises `ValueError` where nothing was compared."""
    counts = [one.positions for one in compared]
    positions = sum(counts)
    if positions == 0:
        raise ValueError("no position was compared")
    return Quality(
        agreement=ratio_interval([one.agreed for one in compared], counts, seed),
        kl=ratio_interval([one.divergence for one in compared], counts, seed),
        consistency=ratio_interval([one.same_answer for one in compared], [1] * len(compared), seed),
        covered=math.fsum(one.covered for one in compared) / positions,
        prompts=len(compared),
        positions=positions,
    )


def ratio_interval(sums: Sequence[float], counts: Sequence[int], seed: int = 0) -> Interval:
    """`sum(sums) / sum(counts)` with a percentile bootstrap interval at 95% (Efron 1979), repeatable by `seed`.

    Whole prompts are resampled, 20,000 times: positions of one answer are no independent draws. Where all prompts are
    alike the interval is a point, which says nothing of prompts that were not asked. Raises `ValueError` for unequal
    lengths or no counts.
    """
    if len(sums) != len(counts) or not any(counts):
        raise ValueError(f"{len(sums)} sums cannot be divided by {len(counts)} counts that add up to {sum(counts)}")
    above, below = np.asarray(sums, dtype=float), np.asarray(counts, dtype=float)
    drawn = np.random.default_rng(seed).multinomial(len(below), np.full(len(below), 1 / len(below)), RESAMPLES)
    totals = drawn @ below
    # A draw of nothing but empty answers has no ratio.
    ratios = (drawn @ above)[totals > 0] / totals[totals > 0]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(float(above.sum() / below.sum()), float(low), float(high))
