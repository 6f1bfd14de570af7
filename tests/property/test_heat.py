"""What holds for the heat of experts under any load: shares add up, nothing goes below zero, and nothing flaps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cluster.config.experts import ExpertsConfig
from cluster.experts.heat import HeatMeter
from cluster.experts.load import Counts, ExpertShape

SHAPE = ExpertShape(layers=2, experts=3, top_k=1)
NAMES = "abc"


@dataclass(frozen=True)
class Moment:
    passes_s: float
    told: tuple[Counts | None, ...]
    """New tokens by replica; None: it restarts first."""
    restarts: tuple[bool, ...]


COUNTS = st.lists(st.sampled_from([0, 0, 1, 10, 100, 1000]), min_size=6, max_size=6).map(
    lambda cells: np.array(cells, np.int64).reshape(2, 3)
)
MOMENTS = st.lists(
    st.builds(
        Moment,
        # Mostly whole seconds, in which the dwell falls on the very limits.
        passes_s=st.sampled_from([0.0, 1.0, 2.0, 5.0, 60.0]) | st.floats(0, 1000),
        told=st.tuples(COUNTS, COUNTS, COUNTS),
        restarts=st.tuples(*[st.sampled_from([False, False, False, True])] * 3),
    ),
    max_size=30,
)
CONFIGS = st.builds(
    lambda half_life_s, cool, wider, dwell_s, min_tokens: ExpertsConfig(
        half_life_s=half_life_s, hot=max(1.01, cool * wider), cool=cool, dwell_s=dwell_s, min_tokens=min_tokens
    ),
    half_life_s=st.sampled_from([0.5, 10.0, 1000.0]),
    cool=st.floats(0.5, 2),
    wider=st.floats(1.01, 2),
    dwell_s=st.sampled_from([1.0, 5.0, 7.3]),
    min_tokens=st.sampled_from([1, 100, 2000]),
)


class Run:
    """Plays moments to a meter; the replicas in the given order."""

    def __init__(self, config: ExpertsConfig, order: str = NAMES) -> None:
        self.meter = HeatMeter(SHAPE, config)
        self.order = order
        self.now = 0.0
        self.totals = {name: SHAPE.zeros() for name in NAMES}
        self.expected = np.zeros((2, 3))
        for name in order:
            self.meter.add(name, self.totals[name], 0.0)
            self.meter.add_traffic("chat", name, self.totals[name], 0.0)

    def play(self, moment: Moment) -> None:
        self.now += moment.passes_s
        for name in self.order:
            index = NAMES.index(name)
            if moment.restarts[index]:
                self.totals[name] = SHAPE.zeros()
            self.totals[name] = self.totals[name] + moment.told[index]
            self.meter.add(name, self.totals[name], self.now)
            self.meter.add_traffic("chat", name, self.totals[name] // 2, self.now)


@given(CONFIGS, MOMENTS)
def test_shares_add_up_and_nothing_goes_below_zero(config: ExpertsConfig, moments: list[Moment]) -> None:
    run = Run(config)
    for moment in moments:
        run.play(moment)
        heat = run.meter.heat(run.now)
        assert (heat.decayed >= 0).all() and (heat.per_s >= 0).all() and np.isfinite(heat.per_s).all()
        for shares, decayed in ((heat.shares, heat.decayed), *((part, part) for part in heat.by_traffic.values())):
            some = decayed.sum(axis=1) > 0
            np.testing.assert_allclose(shares.sum(axis=1), np.where(some, 1.0, 0.0), atol=1e-9)
        assert ((heat.entropy >= 0) & (heat.entropy <= 1 + 1e-9)).all()
        assert (heat.imbalance <= SHAPE.experts + 1e-9).all()
        for hot in heat.hot:
            assert hot.since_s <= run.now
            assert not hot.traffic or abs(sum(share for _, share in hot.traffic) - 1) < 1e-9


@given(CONFIGS, MOMENTS)
def test_no_expert_changes_more_often_than_once_per_dwell(config: ExpertsConfig, moments: list[Moment]) -> None:
    run = Run(config)
    changed: dict[tuple[int, int], float] = {}
    before: set[tuple[int, int]] = set()
    for moment in moments:
        run.play(moment)
        now_hot = {(hot.layer, hot.expert) for hot in run.meter.heat(run.now).hot}
        for pair in before ^ now_hot:
            assert run.now - changed.get(pair, 0.0) >= config.dwell_s
            changed[pair] = run.now
        before = now_hot


@given(CONFIGS, MOMENTS, st.permutations(NAMES))
def test_the_order_of_replicas_does_not_matter(config: ExpertsConfig, moments: list[Moment], order: list[str]) -> None:
    one, other = Run(config), Run(config, "".join(order))
    for moment in moments:
        one.play(moment)
        other.play(moment)
    first, second = one.meter.heat(one.now), other.meter.heat(other.now)
    np.testing.assert_array_equal(first.decayed, second.decayed)
    assert first.hot == second.hot


@given(COUNTS, st.sampled_from([0.5, 10.0, 1000.0]), st.lists(st.floats(0, 1), max_size=10))
def test_tokens_count_half_after_a_half_life_whenever_somebody_looks(
    counts: Counts, half_life_s: float, looks: list[float]
) -> None:
    meter = HeatMeter(SHAPE, ExpertsConfig(half_life_s=half_life_s))
    meter.add("a", SHAPE.zeros(), 0)
    meter.add("a", counts, 0)
    for part in sorted(looks):
        meter.observe(part * half_life_s)
    np.testing.assert_allclose(meter.heat(half_life_s).decayed, counts / 2)


@given(CONFIGS, MOMENTS)
def test_a_restart_adds_what_the_new_engine_counted(config: ExpertsConfig, moments: list[Moment]) -> None:
    run = Run(config.model_copy(update={"half_life_s": 1e12}))
    expected = SHAPE.zeros()
    for moment in moments:
        before = {name: total.copy() for name, total in run.totals.items()}
        run.play(moment)
        for name, total in run.totals.items():
            fell = bool((total < before[name]).any())
            expected = expected + (total if fell else total - before[name])
    np.testing.assert_allclose(run.meter.heat(run.now).decayed, expected, rtol=1e-6)
