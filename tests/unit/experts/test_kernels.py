"""How what experts say is added up."""

from __future__ import annotations

import numpy as np
import pytest

from deployments.experts.kernels import DENSE, Pairs


def pairs_of(count: int, rows: int) -> Pairs:
    numbers = np.arange(count, dtype=np.int32)
    return Pairs(numbers % rows, numbers // rows, np.linspace(0.1, 1, count, dtype=np.float32))


@pytest.mark.parametrize("count", [1, DENSE, DENSE + 1, 200])
def test_each_row_has_the_weighted_sum_of_its_pairs(count: int) -> None:
    rows = min(count, 20)
    pairs, parts = pairs_of(count, rows), np.random.default_rng(1).random((count, 8), np.float32)
    wanted = np.zeros((rows, 8), np.float32)
    for row, weight, part in zip(pairs.rows, pairs.weights, parts, strict=True):
        wanted[row] += weight * part
    out = np.full((rows, 8), 9, np.float32)
    pairs.add_up(out, parts.copy())
    np.testing.assert_allclose(out, wanted, rtol=1e-5)


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
def test_a_row_that_overflows_spoils_no_other(number: float) -> None:
    pairs, parts = pairs_of(4, 2), np.ones((4, 8), np.float32)
    parts[1] = number
    out = np.empty((2, 8), np.float32)
    pairs.add_up(out, parts)
    assert np.isfinite(out[0]).all() and not np.isfinite(out[1]).any()
