from __future__ import annotations

import numpy as np
import pytest

from cluster.config.pools import PoolsConfig
from cluster.experts.balancing import QUIET_S, SILENT_S, PoolBooks, Report, holding_of, includes, one_home, placement_of
from cluster.experts.load import Counts, ExpertShape
from cluster.experts.placement import round_robin

SHAPE = ExpertShape(layers=3, experts=4, top_k=1)
LAYERS = (2, 5, 6)


def books(**settings: object) -> PoolBooks:
    return PoolBooks(PoolsConfig.model_validate({"quota_pairs_per_s": 100, **settings}), SHAPE, 10, ("0", "1"))


def report(pool: str, replica: str, counts: Counts, busy_s: float = 0.0) -> Report:
    holds = holding_of(round_robin(3, 4, 2), int(pool), LAYERS)
    return Report(pool, replica, "node", "unix:/a", "tcp:h:1", holds, counts, busy_s, 0, 60, 5)


def counts(*on_first_layer: int) -> Counts:
    found = SHAPE.zeros()
    found[0] = on_first_layer
    return found


def feed(known: PoolBooks, per_s: int, seconds: range, pool: str = "0", replica: str = "a") -> None:
    """So many pairs a second for expert 0, which pool 0 holds."""
    for second in seconds:
        known.take(report(pool, replica, counts(per_s * second, 0, 0, 0), 0.1 * second), float(second))
        known.take(report("1", "b", SHAPE.zeros()), float(second))


def test_what_a_pool_holds_has_the_models_own_numbers_of_layers() -> None:
    assert holding_of(round_robin(3, 4, 2), 1, LAYERS) == {layer: frozenset({1, 3}) for layer in LAYERS}


def test_one_holding_includes_another() -> None:
    assert includes({2: frozenset({1, 3})}, {2: frozenset({3})})
    assert not includes({2: frozenset({1})}, {2: frozenset({3})})
    assert not includes({}, {2: frozenset({3})})


def test_a_pool_that_gets_more_than_its_quota_gains_a_replica_within_seconds() -> None:
    known = books()
    decided_at = None
    for second in range(12):
        feed(known, 95, range(second, second + 1))
        decision = known.decide(float(second), None)
        if decision.changes:
            decided_at = second
            break
    assert decided_at is not None and decided_at <= 8
    assert [(one.pool, one.before, one.after, one.cause) for one in decision.changes] == [("0", 1, 2, "hot")]
    assert known.target("0") == 2 and known.target("1") == 1


def test_it_loses_it_again_once_it_was_cool_for_long_enough() -> None:
    known = books(dwell_s=5)
    feed(known, 95, range(12))
    known.decide(11.0, None)
    assert known.target("0") == 2
    seen = []
    for second in range(12, 60):
        known.take(report("0", "a", counts(95 * 11, 0, 0, 0)), float(second))
        known.take(report("1", "b", SHAPE.zeros()), float(second))
        seen += [(second, one.after) for one in known.decide(float(second), None).changes]
    assert [after for _, after in seen] == [1]
    assert seen[0][0] >= 16


def test_without_a_quota_its_capacity_is_what_it_was_seen_to_compute() -> None:
    known = books(quota_pairs_per_s=None)
    assert known.capacity("0") == 0
    # A tenth of each second it computes 95 pairs.
    feed(known, 95, range(4))
    assert known.capacity("0") == pytest.approx(950)


def test_a_pool_without_tokens_is_parked_and_wakes_when_it_is_asked_for() -> None:
    known = books(idle_s=10, dwell_s=1)
    changes = []
    for second in range(14):
        feed(known, 10, range(second, second + 1))
        changes += known.decide(float(second), None).changes
    # Nobody ever asked for pool 1.
    assert [(one.pool, one.after, one.cause) for one in changes] == [("1", 0, "idle")]
    known.asked("1", 14.0)
    assert [(one.pool, one.after, one.cause) for one in known.decide(14.1, None).changes] == [("1", 1, "invoked")]


def test_a_replica_that_is_silent_is_no_longer_served_and_comes_back() -> None:
    known = books()
    feed(known, 1, range(2))
    assert [one.report.replica for one in known.answering("0", 1.0 + QUIET_S)] == ["a"]
    assert known.answering("0", 1.1 + QUIET_S) == [] and known.serving("0"), "trunks find out by themselves"
    known.forget_silent(1.0 + SILENT_S + 0.1)
    assert known.serving("0") == []
    known.take(report("0", "a", counts(7, 0, 0, 0)), 8.0)
    assert [one.report.replica for one in known.serving("0")] == ["a"]


def test_the_last_replica_of_a_pool_that_is_to_have_one_is_kept() -> None:
    known = books()
    feed(known, 1, range(2))
    assert not known.leave("a")
    assert [one.report.replica for one in known.serving("0")] == ["a"]
    known.take(report("0", "c", SHAPE.zeros()), 2.0)
    assert known.leave("a")
    assert [one.report.replica for one in known.serving("0")] == ["c"]
    known.take(report("0", "a", SHAPE.zeros()), 2.5)
    assert [one.report.replica for one in known.serving("0")] == ["c"], "one that leaves goes on reporting"
    assert known.leave("nobody")


def test_a_pool_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="no pool '7'"):
        books().take(Report("7", "a", "", "", "", {}, SHAPE.zeros(), 0, 0, 0, 0), 0.0)


def test_what_comes_for_a_pool_counts_for_its_experts() -> None:
    known = books()
    for second in range(20):
        known.take(report("0", "a", counts(40 * second, 0, 20 * second, 0)), float(second))
        known.take(report("1", "b", counts(0, 10 * second, 0, 0)), float(second))
    per_s = known.pool_per_s(19.0)
    assert per_s["0"] == pytest.approx(60, rel=0.25) and per_s["1"] == pytest.approx(10, rel=0.25)
    assert np.argmax(known.per_s(19.0)[0]) == 0


def test_memory_without_a_bound_is_what_the_most_replicas_take() -> None:
    assert books(max=3).memory_bytes == 3 * 12 * 10
    assert books(memory_bytes=77).memory_bytes == 77


def test_what_pools_hold_becomes_a_placement_with_one_home_for_each_pair() -> None:
    wide = [{2: frozenset({0, 1, 2}), 5: frozenset({0}), 6: frozenset({0})}, {2: frozenset({1, 3}), 5: frozenset({1})}]
    held = placement_of([*wide, None], LAYERS, 4)
    assert held[0, 0].tolist() == [True, True, True, False]
    assert held[2, 1].tolist() == [False, False, True, True], "a pool that is parked has what nobody else has"
    home = one_home(held)
    assert (home.sum(axis=0) == 1).all()
    assert home[1, 0].tolist() == [False, True, False, True], "the pool that has less keeps what two have"
    assert one_home(np.zeros((2, 1, 4), np.bool_)).sum() == 4, "a pair that nobody holds goes to a pool in turn"
    assert (one_home(round_robin(3, 4, 2)) == round_robin(3, 4, 2)).all()
