from __future__ import annotations

import pytest

from cluster.records.replica_time import MAX_STEP_S, ReplicaBucket, ReplicaClock, ReplicaSeconds, seconds_of


def test_each_replica_is_busy_or_idle() -> None:
    seconds = seconds_of([("dense", 0), ("dense", 3), ("dense", 0), ("mini", 1)], 2.0)
    assert seconds == {"dense": ReplicaSeconds(busy=2.0, idle=4.0), "mini": ReplicaSeconds(busy=2.0)}


@pytest.mark.parametrize(("step_s", "counted"), [(-1.0, 0.0), (0.0, 0.0), (3600.0, MAX_STEP_S)])
def test_of_a_gap_nothing_is_known(step_s: float, counted: float) -> None:
    assert seconds_of([("dense", 0)], step_s) == {"dense": ReplicaSeconds(idle=counted)}


def test_minutes_grow_until_they_are_over() -> None:
    clock = ReplicaClock()
    clock.add([("dense", 0)], 1.0, 119.0)
    clock.add([("dense", 1)], 1.0, 120.0)
    assert set(clock.buckets(120.5)) == {
        ReplicaBucket(1, "dense", ReplicaSeconds(idle=1.0)),
        ReplicaBucket(2, "dense", ReplicaSeconds(busy=1.0)),
    }
    clock.add([("dense", 1)], 1.0, 121.0)
    assert clock.buckets(121.0) == (ReplicaBucket(2, "dense", ReplicaSeconds(busy=2.0)),)
    assert clock.total == {"dense": ReplicaSeconds(busy=2.0, idle=1.0)}


def test_what_nobody_takes_is_bounded() -> None:
    clock = ReplicaClock(max_buckets=2)
    for minute in range(5):
        clock.add([("dense", 0)], 1.0, 60.0 * minute)
    assert len(clock.buckets(0.0)) == 2
    assert clock.total["dense"].idle == 5.0
