"""The simulated engine as it is shipped, beside the real one that it was fitted to."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config.engine import SimulatedConfig
from deployments.engines.simulated.core import Costs
from tests.simulation.measured import CLOSED, PRESSURE, ClosedLoop, Pressure, closed_loop, pressure

DOCUMENT = Path(__file__).parents[2] / "docs" / "loadtests.md"

SHIPPED = SimulatedConfig()
COSTS = Costs(SHIPPED.prefill_tokens_per_s, SHIPPED.decode_step_base_s, SHIPPED.decode_step_per_seq_s)

RATE = 0.15
"""Error of tokens/s: what the real engine itself varies by from run to run."""
DELAY = 0.30
"""Error of the time to the first token, which multiplies the errors of the steps before it."""


@pytest.mark.parametrize("load", CLOSED, ids=lambda load: f"{load.streams} streams")
def test_decoding_takes_as_long(load: ClosedLoop) -> None:
    seen = closed_loop(COSTS, load)
    assert seen.tokens_per_s == pytest.approx(load.tokens_per_s, rel=RATE)
    assert seen.preemptions == 0
    if load.ttft_p50_s is not None:
        assert seen.ttft_p50_s == pytest.approx(load.ttft_p50_s, rel=DELAY)


@pytest.mark.parametrize("load", PRESSURE, ids=lambda load: f"{load.kv_tokens} tokens of KV")
def test_pressure_costs_as_much(load: Pressure) -> None:
    seen = pressure(COSTS, load)
    assert seen.tokens_per_s == pytest.approx(load.tokens_per_s, rel=RATE)
    assert seen.ttft_p50_s == pytest.approx(load.ttft_p50_s, rel=DELAY)
    assert seen.preemptions == pytest.approx(load.preemptions, rel=DELAY)


@pytest.mark.parametrize(
    "wrong", [Costs(4000.0, 0.019, 0.001), Costs(1500.0, 0.03, 0.001), Costs(1500.0, 0.019, 0.002)]
)
def test_other_costs_would_not_do(wrong: Costs) -> None:
    """Each of the three is held by some run, so that none can drift unnoticed."""
    rates = [(closed_loop(wrong, load).tokens_per_s, load.tokens_per_s) for load in CLOSED]
    rates += [(pressure(wrong, load).tokens_per_s, load.tokens_per_s) for load in PRESSURE]
    assert any(abs(seen / measured - 1) > RATE for seen, measured in rates)


def test_the_table_in_the_documentation_is_what_comes_out() -> None:
    lines = DOCUMENT.read_text().splitlines()
    for load in CLOSED:
        seen = closed_loop(COSTS, load)
        delays = "" if load.ttft_p50_s is None else f"{load.ttft_p50_s:.2f} / {seen.ttft_p50_s:.2f}"
        row = f"| {load.streams} stream{'s' * (load.streams > 1)} | {load.tokens_per_s:.0f} / {seen.tokens_per_s:.0f} | {delays} | |"
        assert " ".join(row.split()) in [" ".join(line.split()) for line in lines]
    for pool in PRESSURE:
        found = pressure(COSTS, pool)
        assert (
            f"| pool of {pool.kv_tokens} tokens | {pool.tokens_per_s:.0f} / {found.tokens_per_s:.0f} "
            f"| {pool.ttft_p50_s:.1f} / {found.ttft_p50_s:.1f} | {pool.preemptions} / {found.preemptions} |"
        ) in lines
