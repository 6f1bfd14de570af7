from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.stats import median, median_interval, quantile, ratios

FINITE = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


@given(FINITE, st.floats(0, 1))
def test_quantile_is_numpys(values: list[float], fraction: float) -> None:
    assert quantile(sorted(values), fraction) == pytest.approx(float(np.quantile(values, fraction)), abs=1e-6)


@given(FINITE)
def test_interval_holds_the_median_and_stays_within_the_values(values: list[float]) -> None:
    found = median_interval(values)
    assert found.low <= found.median <= found.high
    assert min(values) <= found.low
    assert found.high <= max(values)


def test_interval_of_five_values_is_known() -> None:
    # The bootstrap median of n = 5 is the i-th smallest with known probability; P(smallest) = P(at least 3 of 5 draws
    # are the smallest) = 0.05792, so 2.5 % lies at the smallest value and 97.5 % at the largest.
    found = median_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.low, found.median, found.high) == (1.0, 3.0, 5.0)


def test_interval_of_many_values_matches_theory() -> None:
    # Order statistics: for n = 101 the 95 % interval of the median reaches from about rank 41 to rank 61.
    found = median_interval([float(rank) for rank in range(1, 102)])
    assert found.median == 51.0
    assert found.low == pytest.approx(41.0, abs=1.0)
    assert found.high == pytest.approx(61.0, abs=1.0)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    source = np.random.default_rng(7)
    inside = 0
    for _ in range(100):
        found = median_interval(source.normal(1.0, 0.1, size=15).tolist())
        inside += found.low <= 1.0 <= found.high
    assert inside / 100 == pytest.approx(0.95, abs=0.07)


def test_interval_is_repeatable() -> None:
    assert median_interval([1.0, 1.5, 0.9, 1.2]) == median_interval([1.0, 1.5, 0.9, 1.2])


def test_ratios_and_median() -> None:
    assert ratios([3.0, 4.0], [2.0, 8.0]) == (1.5, 0.5)
    assert median([3.0, 1.0, 2.0, 10.0]) == 2.5


@pytest.mark.parametrize("call", [lambda: median([]), lambda: ratios([1.0], []), lambda: ratios([1.0], [0.0])])
def test_what_has_no_answer_is_refused(call: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        call()  # type: ignore[operator]


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_confidence_is_bounded(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        median_interval([1.0], confidence)
