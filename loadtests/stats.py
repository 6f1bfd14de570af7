"""Quantiles, and an interval around the median of paired ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

_RESAMPLES: Final = 20_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A median with the bounds of its confidence interval."""

    median: float
    low: float
    high: float


def quantile(ordered: Sequence[float], fraction: float) -> float:
    """The quantile of sorted values by linear interpolation (numpy's default). Raises `ValueError` for none."""
    if not ordered:
        raise ValueError("there is no quantile of no values")
    position = (len(ordered) - 1) * fraction
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def median(values: Sequence[float]) -> float:
    """The middle value. Raises `ValueError` for none."""
    return quantile(sorted(values), 0.5)


def median_interval(values: Sequence[float], confidence: float = 0.95, seed: int = 0) -> Interval:
    """Median of `values` with a percentile bootstrap interval (Efron 1979), repeatable by `seed`.

    The values are resampled with replacement 20,000 times. With few values the interval is honest but coarse: with
    five its bounds are close to the extremes. Raises `ValueError` for no values or a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError("confidence lies between 0 and 1")
    centre = median(values)
    source = np.random.default_rng(seed)
    samples = source.choice(np.asarray(values, dtype=float), size=(_RESAMPLES, len(values)), replace=True)
    medians = np.median(samples, axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return Interval(centre, float(low), float(high))


def ratios(measured: Sequence[float], baseline: Sequence[float]) -> tuple[float, ...]:
    """`measured / baseline`, pair by pair. Raises `ValueError` for unequal lengths or a baseline that is not positive."""
    if len(measured) != len(baseline):
        raise ValueError(f"{len(measured)} values cannot be paired with {len(baseline)}")
    if any(value <= 0 for value in baseline):
        raise ValueError("a ratio needs a positive baseline")
    return tuple(above / below for above, below in zip(measured, baseline, strict=True))
