from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.experts.placement import Placement, round_robin
from cluster.experts.replication import Decision, Limits, Memory, PoolMemory, PoolState, Snapshot, decide, pool_loads

LIMITS = Limits(memory_bytes=800, loads=1000, interval_s=10.0, dwell_s=30.0, max_replicas=4)
"""Room for 8 replicas of pools of 10 pairs of 10 bytes."""


def pool(name: str, replicas: int = 1, **known: float) -> PoolState:
    settings: dict[str, float] = {"held": replicas, "capacity": 100.0, "pair_bytes": 10, "last_token_s": 0.0} | known
    return PoolState(name=name, replicas=replicas, **settings)  # type: ignore[arg-type]


def snapshot(
    loads: list[float], pools: list[PoolState], limits: Limits = LIMITS, memory: Memory | None = None
) -> Snapshot:
    """Pools of one expert in each of ten layers; `loads` are tokens a second by pool."""
    per_s = np.tile(np.array(loads) / 10, (10, 1))
    return Snapshot(per_s, round_robin(10, len(pools), len(pools)), tuple(pools), limits, memory or Memory())


def targets(decision: Decision) -> dict[str, tuple[int, str]]:
    return {change.pool: (change.after, change.cause) for change in decision.changes}


def test_a_hot_pool_gets_as_many_replicas_as_it_needs_and_says_why() -> None:
    decision = decide(snapshot([170, 60], [pool("a"), pool("b")]), 100.0)
    assert targets(decision) == {"a": (3, "hot")}
    assert decision.changes[0].reason == "170 pairs/s are 170% of its capacity, more than 80%; it needs 3 replicas"
    assert decision.memory.loaded == ((100.0, 20),)


def test_between_low_and_high_nothing_changes() -> None:
    assert decide(snapshot([79, 61], [pool("a"), pool("b", 2)]), 100.0).changes == ()


def test_a_cold_pool_loses_replicas_only_after_the_dwell_time() -> None:
    first = decide(snapshot([20], [pool("a", 3)]), 100.0)
    assert first.changes == () and first.memory.pools["a"].cold_since_s == 100.0
    assert decide(snapshot([20], [pool("a", 3)], memory=first.memory), 129.9).changes == ()
    warm = decide(snapshot([100], [pool("a", 3)], memory=first.memory), 120.0)
    assert decide(snapshot([20], [pool("a", 3)], memory=warm.memory), 131.0).changes == ()
    last = decide(snapshot([20], [pool("a", 3)], memory=first.memory), 130.0)
    assert targets(last) == {"a": (1, "cold")}
    assert not last.memory.pools["a"].went_up


def test_a_pool_that_lost_a_replica_does_not_gain_one_within_the_dwell_time() -> None:
    memory = Memory({"a": PoolMemory(changed_s=100.0, went_up=False)})
    assert decide(snapshot([150], [pool("a")], memory=memory), 129.0).changes == ()
    assert targets(decide(snapshot([150], [pool("a")], memory=memory), 130.0)) == {"a": (2, "hot")}
    grew = Memory({"a": PoolMemory(changed_s=100.0, went_up=True)})
    assert targets(decide(snapshot([150], [pool("a")], memory=grew), 101.0)) == {"a": (2, "hot")}


def test_hot_pools_come_first_when_memory_is_short() -> None:
    limits = replace(LIMITS, memory_bytes=400)
    decision = decide(snapshot([150, 200, 160], [pool("a"), pool("b"), pool("c")], limits), 100.0)
    assert targets(decision) == {"b": (2, "hot")}
    assert {one.pool: one.lacks for one in decision.blocked} == {"a": "memory", "b": "memory", "c": "memory"}


def test_memory_that_is_given_up_counts_until_it_is_free() -> None:
    limits = replace(LIMITS, memory_bytes=300)
    leaving = [pool("a"), pool("b", 1, held=2)]
    assert decide(snapshot([150, 10], leaving, limits), 100.0).changes == ()
    assert targets(decide(snapshot([150, 10], [pool("a"), pool("b")], limits), 100.0)) == {"a": (2, "hot")}


def test_a_cooler_pool_yields_a_replica_to_a_hotter_one() -> None:
    limits = replace(LIMITS, memory_bytes=400)
    pools = [pool("a"), pool("b", 3)]
    decision = decide(snapshot([150, 120], pools, limits), 100.0)
    assert targets(decision) == {"b": (2, "yields")}
    assert "pool a is hotter" in decision.changes[0].reason
    # What is on its way out is not asked for twice, and b does not want it back.
    later = [pool("a"), pool("b", 2, held=3)]
    assert decide(snapshot([150, 120], later, limits, decision.memory), 101.0).changes == ()
    last = decide(snapshot([150, 120], [pool("a"), pool("b", 2)], limits, decision.memory), 102.0)
    assert targets(last) == {"a": (2, "hot")}


def test_nobody_yields_what_it_would_ask_back() -> None:
    limits = replace(LIMITS, memory_bytes=300)
    assert decide(snapshot([120, 130], [pool("a"), pool("b", 2)], limits), 100.0).changes == ()


def test_the_budget_of_loads_holds_over_its_interval() -> None:
    limits = replace(LIMITS, loads=25)
    first = decide(snapshot([300, 80], [pool("a"), pool("b")], limits), 100.0)
    assert targets(first) == {"a": (3, "hot")}
    assert [one.lacks for one in first.blocked] == ["loads"]
    pools = [pool("a", 3), pool("b")]
    assert decide(snapshot([300, 80], pools, limits, first.memory), 109.9).changes == ()
    assert targets(decide(snapshot([300, 80], pools, limits, first.memory), 110.0)) == {"a": (4, "hot")}


def test_an_idle_pool_is_parked_if_that_is_allowed_and_wakes_when_it_is_invoked() -> None:
    limits = replace(LIMITS, idle_s=60.0)
    assert decide(snapshot([0], [pool("a")]), 1000.0).changes == ()
    assert targets(decide(snapshot([0], [pool("a")], limits), 60.0)) == {"a": (0, "idle")}
    assert decide(snapshot([0], [pool("a", waiting=1)], limits), 60.0).changes == ()
    parked = decide(snapshot([0], [pool("a")], limits), 60.0).memory
    assert decide(snapshot([0], [pool("a", 0)], limits, parked), 500.0).changes == ()
    # At once: the dwell time of 30 s is for those who can wait.
    woken = decide(snapshot([0], [pool("a", 0, waiting=3)], limits, parked), 61.0)
    assert targets(woken) == {"a": (1, "invoked")}
    assert decide(snapshot([0], [pool("a")], limits, woken.memory), 90.0).changes == ()


def test_the_bounds_hold_whatever_the_load() -> None:
    limits = replace(LIMITS, memory_bytes=900, min_replicas=2, max_replicas=3)
    decision = decide(snapshot([900, 0, 0], [pool("a", 2), pool("b", 1), pool("c", 4)], limits), 100.0)
    assert targets(decision) == {"a": (3, "hot"), "b": (2, "bounds"), "c": (3, "bounds")}


def test_the_load_of_a_pool_is_that_of_its_pairs_by_replicas() -> None:
    placement: Placement = np.array([[[True, True, False]], [[False, True, True]]])
    per_s = np.array([[6.0, 12.0, 9.0]])
    assert pool_loads(placement, per_s, [1, 1]).tolist() == [12.0, 15.0]
    assert pool_loads(placement, per_s, [2, 1]).tolist() == [14.0, 13.0]
    assert pool_loads(placement, per_s, [0, 1]).tolist() == [6.0, 21.0]


def test_pairs_move_where_the_load_is_uneven_and_then_rest() -> None:
    def halves(*_: object) -> np.ndarray:
        return np.tile([0, 2, 1, 3], (2, 1))

    placement = np.zeros((2, 2, 4), np.bool_)
    placement[0, :, :2] = placement[1, :, 2:] = True
    per_s = np.array([[40.0, 40.0, 1.0, 1.0], [40.0, 40.0, 1.0, 1.0]])
    pools = (pool("a", capacity=1000.0), pool("b", capacity=1000.0))
    limits = replace(LIMITS, loads=3)
    uneven = Snapshot(per_s, placement, pools, limits)
    decision = decide(uneven, 100.0, halves)
    found = decision.rearrangement
    assert found is not None and found.loads == 2 and found.left == 2
    assert decision.memory.loaded == ((100.0, 2),)
    assert set(decision.memory.moved.values()) == {100.0}
    again = Snapshot(per_s, found.placement, pools, limits, decision.memory)
    assert decide(again, 105.0, halves).rearrangement is None
    assert decide(again, 110.0, halves).rearrangement is not None  # the pairs of the other layer
    assert decide(replace(uneven, limits=replace(limits, uneven=2.0)), 100.0, halves).rearrangement is None
    assert decide(uneven, 100.0).rearrangement is None


def test_a_model_without_traffic_is_left_alone() -> None:
    with np.errstate(all="raise"):
        decision = decide(snapshot([0, 0], [pool("a"), pool("b")]), 5.0, lambda *_: pytest.fail("nothing to balance"))
    assert decision.changes == () and decision.rearrangement is None
