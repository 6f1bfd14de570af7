"""Fits and judges a calibration: from raw confidence to the share of right answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression  # type: ignore[import-untyped]

from cluster.routing.confidence import Calibration
from loadtests.stats import Interval

BINS: Final = 10
_RESAMPLES: Final = 2000
_MAX_POINTS: Final = 24


def fit(raw: Sequence[float], right: Sequence[bool]) -> Calibration:
    """The isotonic regression of `right` on `raw` (0 to 1), as points. Raises `ValueError` for fewer than two answers.

    Shares are drawn towards the mean by one answer's weight (Laplace), so that a lucky end of the line never says 0 or 1.
    """
    if len(raw) < 2 or len(raw) != len(right):
        raise ValueError(f"{len(raw)} confidences and {len(right)} answers cannot be fitted")
    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(raw, np.asarray(right, dtype=float))
    xs, ys = np.asarray(model.X_thresholds_), np.asarray(model.y_thresholds_)
    mean = float(np.mean(right))
    weight = 1.0 / (1.0 + len(raw) / BINS)
    ys = (1 - weight) * ys + weight * mean
    if len(xs) > _MAX_POINTS:
        keep = np.unique(np.linspace(0, len(xs) - 1, _MAX_POINTS).round().astype(int))
        xs, ys = xs[keep], ys[keep]
    return Calibration(tuple((round(float(x), 4), round(float(y), 4)) for x, y in zip(xs, ys, strict=True)))


def calibration_error(scores: Sequence[float], right: Sequence[bool]) -> float:
    """Expected calibration error, 0 to 1: over ten bins of equally many answers, the mean distance of score and share.

    Source: Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015, with equal-mass bins.
    """
    order = np.argsort(np.asarray(scores), kind="stable")
    ordered, correct = np.asarray(scores)[order], np.asarray(right, dtype=float)[order]
    parts = zip(np.array_split(ordered, BINS), np.array_split(correct, BINS), strict=True)
    gaps = [(len(score), abs(float(score.mean() - share.mean()))) for score, share in parts if len(score)]
    return sum(size * gap for size, gap in gaps) / len(ordered)


def separation(scores: Sequence[float], right: Sequence[bool], seed: int = 0) -> Interval:
    """AUROC, 0 to 1, 0.5 by chance, with a percentile bootstrap interval of 95 %. Raises `ValueError` if all are right or all wrong."""
    values, correct = np.asarray(scores), np.asarray(right, dtype=bool)
    if correct.all() or not correct.any():
        raise ValueError("answers that are all right, or all wrong, cannot be told apart")
    source = np.random.default_rng(seed)
    found = []
    for _ in range(_RESAMPLES):
        drawn = source.integers(0, len(values), len(values))
        if correct[drawn].any() and not correct[drawn].all():
            found.append(_auroc(values[drawn], correct[drawn]))
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(_auroc(values, correct), float(low), float(high))


def _auroc(values: NDArray[np.float64], correct: NDArray[np.bool_]) -> float:
    """By ranks (Mann and Whitney 1947), a tie counted half."""
    _, position, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[position]
    right = int(correct.sum())
    return float((ranks[correct].sum() - right * (right + 1) / 2) / (right * (len(values) - right)))
