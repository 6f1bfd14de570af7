"""Whether one way of choosing a model beats another in everything that counts: paired bootstrap over questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from loadtests.stats import quantile

_RESAMPLES: Final = 2000


@dataclass(frozen=True, slots=True)
class Asked:
    """What one policy made of one question, asked in two wordings."""

    right: bool
    consistent: bool
    """Whether both wordings got a right answer, or the same one."""
    seconds: tuple[float, float]
    strong_tokens: int
    """Prompt and completion tokens of the strong model, both wordings."""
    attempts: int


@dataclass(frozen=True, slots=True)
class Arm:
    """All of one policy. Shares are 0 to 1."""

    name: str
    right: float
    consistent: float
    p50_s: float
    p95_s: float
    strong_tokens: int
    attempts: float
    """Mean per request."""


def summarise_arm(name: str, asked: Sequence[Asked]) -> Arm:
    """Shares, quantiles and sums. Raises `ValueError` for no questions."""
    seconds = sorted(second for one in asked for second in one.seconds)
    return Arm(
        name,
        right=sum(one.right for one in asked) / len(asked),
        consistent=sum(one.consistent for one in asked) / len(asked),
        p50_s=quantile(seconds, 0.5),
        p95_s=quantile(seconds, 0.95),
        strong_tokens=sum(one.strong_tokens for one in asked),
        attempts=sum(one.attempts for one in asked) / len(asked),
    )


def dominates(other: Sequence[Asked], own: Sequence[Asked], seed: int = 0) -> bool:
    """Whether `other` is better than `own` in one measure for sure, and worse in none, not even by its point estimate.

    The measures: share of right and of consistent answers, median and 95th percentile of the seconds, tokens of the strong
    model. For sure: the interval (95 %, paired bootstrap over questions, Efron 1979) of the difference lies beyond 0.
    """
    pairs = len(own)
    if pairs == 0 or pairs != len(other):
        raise ValueError(f"{len(other)} questions cannot be paired with {pairs}")
    picks = np.random.default_rng(seed).integers(0, pairs, size=(_RESAMPLES, pairs))
    theirs, ours = _measures(other), _measures(own)
    whole = np.arange(pairs)[None, :]
    gains = [_gain(a, b, picks, how) for a, b, how in zip(theirs, ours, _HOW, strict=True)]
    points = [float(_gain(a, b, whole, how)[0]) for a, b, how in zip(theirs, ours, _HOW, strict=True)]
    if any(point < 0 for point in points):
        return False
    return any(float(np.quantile(gain, 0.025)) > 0 for gain in gains)


_HOW: Final = ("mean", "mean", "p50", "p95", "mean")


def _measures(asked: Sequence[Asked]) -> tuple[np.ndarray, ...]:
    """Per question, the better the more: `[questions]`, and `[questions, 2]` for the seconds."""
    seconds = -np.array([one.seconds for one in asked])
    return (
        np.array([one.right for one in asked], dtype=float),
        np.array([one.consistent for one in asked], dtype=float),
        seconds,
        seconds,
        -np.array([one.strong_tokens for one in asked], dtype=float),
    )


def _gain(theirs: np.ndarray, ours: np.ndarray, picks: np.ndarray, how: str) -> np.ndarray:
    """Difference of a measure in each resample, positive where `theirs` is better."""
    if how == "mean":
        return np.asarray((theirs - ours)[picks].mean(axis=1))
    # Seconds are negative here, so the slow end is the low quantile.
    at = 0.5 if how == "p50" else 0.05
    drawn = (values[picks].reshape(len(picks), -1) for values in (theirs, ours))
    a, b = (np.quantile(values, at, axis=1) for values in drawn)
    return np.asarray(a - b)
