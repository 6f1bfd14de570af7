from __future__ import annotations

import math

import numpy as np
import pytest

from deployments.models import kv_quality
from deployments.models.kv_quality import (
    Compared,
    compare,
    covered,
    divergence,
    likeliest,
    ratio_interval,
    summarise,
)


def logs(*probabilities: float, first: int = 0) -> dict[int, float]:
    return {first + place: math.log(p) for place, p in enumerate(probabilities)}


def kl(own: np.ndarray, other: np.ndarray) -> float:
    return float(np.sum(own * np.log(own / other)))


def top(distribution: np.ndarray, k: int) -> dict[int, float]:
    return {int(token): math.log(distribution[token]) for token in np.argsort(-distribution)[:k]}


def test_the_divergence_of_known_distributions():
    # All of the probability is told of: the exact value, 0.5 ln(0.5/0.25) + 0.5 ln(0.5/0.75).
    assert divergence(logs(0.5, 0.5), logs(0.25, 0.75)) == pytest.approx(0.5 * math.log(4 / 3), abs=1e-6)
    # One token of two: the others are one event of 0.4 and 0.2.
    expected = 0.6 * math.log(0.6 / 0.8) + 0.4 * math.log(0.4 / 0.2)
    assert divergence(logs(0.6), logs(0.8)) == pytest.approx(expected)


def test_only_tokens_that_both_tell_of_are_compared_one_by_one():
    own, other = logs(0.6, 0.3), logs(0.5, 0.4, first=1)
    expected = 0.3 * math.log(0.3 / 0.5) + 0.7 * math.log(0.7 / 0.5)
    assert divergence(own, other) == pytest.approx(expected)
    assert covered(own, other) == pytest.approx(0.3)
    assert divergence(logs(0.6), logs(0.8, first=5)) == covered(logs(0.6), logs(0.8, first=5)) == 0


def test_the_same_distribution_does_not_diverge_at_all():
    rng = np.random.default_rng(0)
    for _ in range(200):
        told = top(rng.dirichlet(np.full(500, 0.05)), 20)
        # As they come: float32 in the engine, a number in JSON.
        told = {token: float(np.float32(log)) for token, log in told.items()}
        assert divergence(told, dict(told)) == 0.0


@pytest.mark.parametrize("k", [1, 5, 20, 100])
def test_it_is_a_lower_bound_and_exact_where_all_tokens_are_told_of(k):
    rng = np.random.default_rng(k)
    for _ in range(100):
        own = rng.dirichlet(np.full(100, 0.3)) + 1e-9
        own /= own.sum()
        other = own * np.exp(rng.normal(0, 0.3, 100))
        other /= other.sum()
        found = divergence(top(own, k), top(other, k))
        assert 0 <= found <= kl(own, other) + 1e-6
        if k == 100:
            assert found == pytest.approx(kl(own, other), abs=1e-5)


def test_a_token_that_became_impossible_counts_heavily_and_stays_finite():
    # vLLM writes -9999 for minus infinity.
    found = divergence({1: math.log(0.5), 2: math.log(0.5)}, {1: 0.0, 2: -9999.0})
    assert 1000 < found < math.inf
    assert divergence({1: 0.0, 2: -9999.0}, {1: math.log(0.5), 2: math.log(0.5)}) == pytest.approx(
        math.log(2), abs=1e-5
    )


def test_of_equally_likely_tokens_the_first_is_taken_as_a_sampler_does():
    assert likeliest({9: -1.0, 4: -0.5, 7: -0.5}) == 4
    with pytest.raises(ValueError, match="none"):
        likeliest({})


def test_one_prompt_is_compared_position_by_position():
    own = [logs(0.9, 0.1), logs(0.2, 0.8), logs(0.5, 0.5)]
    lower = [logs(0.6, 0.4), logs(0.7, 0.3), logs(0.5, 0.5)]
    found = compare(own, lower, same_answer=False)
    assert (found.positions, found.agreed, found.same_answer) == (3, 2, False)
    assert found.divergence == pytest.approx(sum(divergence(a, b) for a, b in zip(own, lower, strict=True)))
    assert found.covered == pytest.approx(3.0)
    with pytest.raises(ValueError, match="shorter"):
        compare(own, lower[:2], same_answer=False)


def test_figures_are_per_position_and_consistency_per_prompt():
    found = summarise([Compared(30, 30, 0.0, 27.0, True), Compared(10, 5, 2.0, 8.0, False), Compared(0, 0, 0, 0, True)])
    assert found.agreement.value == 35 / 40
    assert found.kl.value == 2.0 / 40
    assert found.consistency.value == pytest.approx(2 / 3)
    assert (found.covered, found.prompts, found.positions) == (35 / 40, 3, 40)
    assert found.agreement.low == 0.5
    assert found.agreement.high == 1.0
    with pytest.raises(ValueError, match="no position"):
        summarise([Compared(0, 0, 0.0, 0.0, True)])
    with pytest.raises(ValueError, match="no position"):
        summarise([])


def test_an_interval_is_repeatable_and_covers_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(kv_quality, "RESAMPLES", 1000)
    rng = np.random.default_rng(7)
    covering = 0
    for _ in range(100):
        # Positions of a prompt are alike: a hard prompt is hard all along.
        shares = rng.beta(8, 2, 60)
        sums = rng.binomial(64, shares)
        found = ratio_interval(sums.tolist(), [64] * 60)
        covering += found.low <= 0.8 <= found.high
    assert 88 <= covering <= 99
    assert ratio_interval([1, 2, 3], [4, 4, 4], 5) == ratio_interval([1, 2, 3], [4, 4, 4], 5)
    assert ratio_interval([4, 4], [4, 4]).low == 1.0


def test_an_interval_of_nothing_is_refused():
    with pytest.raises(ValueError, match="cannot be divided"):
        ratio_interval([], [])
    with pytest.raises(ValueError, match="cannot be divided"):
        ratio_interval([1.0], [1, 2])
