"""Orders to several replicas, and those after a failure."""

from dataclasses import replace

from cluster.precision.ladder import Ladder, ReplicaState, decide
from tests.unit.cluster.precision.made_ladders import (
    FULL,
    LADDER,
    NOW_S,
    ladder,
    order,
    target,
)


def names(rules: Ladder, *states: ReplicaState, now_s: float = NOW_S) -> list[tuple[str, int, str]]:
    return [(one.replica, one.level, one.kv_precision) for one in decide(rules, states, now_s)]


def test_one_switch_at_a_time_the_most_pressed_first() -> None:
    one, two, three = (replace(FULL, name=name, level=1) for name in "cab")
    assert names(LADDER, one, two, three) == [("a", 2, "fp8")]
    assert names(LADDER, one, two, replace(three, preemptions_per_s=1)) == [("b", 2, "fp8")]
    assert names(LADDER, replace(one, kv_usage=0.96), two, replace(three, preemptions_per_s=1)) == [("c", 2, "fp8")]


def test_nobody_switches_while_another_does_or_just_did() -> None:
    waiting = replace(FULL, level=1)
    assert names(LADDER, waiting, replace(FULL, name="b", level=1, switching=True)) == []
    switched = replace(FULL, name="b", level=2, kv_precision="fp8", kv_switched_s=NOW_S - 4)
    assert names(LADDER, waiting, switched) == []
    assert names(LADDER, waiting, switched, now_s=NOW_S + 1) == [("a", 2, "fp8")]


def test_what_does_not_switch_does_not_wait() -> None:
    switching = replace(FULL, name="z", level=1, switching=True)
    assert names(LADDER, switching, replace(FULL, name="c"), replace(FULL, name="b")) == [
        ("b", 1, "auto"),
        ("c", 1, "auto"),
    ]
    assert names(LADDER, replace(FULL, name="x", level=1), replace(FULL, name="y")) == [
        ("x", 2, "fp8"),
        ("y", 1, "auto"),
    ]


def test_its_own_last_switch_is_no_reason_to_wait() -> None:
    rules = ladder(model={"pinned": 0})
    assert names(rules, replace(FULL, level=2, kv_precision="fp8", kv_switched_s=NOW_S)) == [("a", 0, "auto")]
    assert decide(LADDER, [], NOW_S) == ()


def test_a_full_cache_alone_turns_nobody_away() -> None:
    full = replace(FULL, level=2, kv_precision="fp8", waiting=0.0)
    assert target(LADDER, full) is None
    assert target(LADDER, replace(full, waiting=1.0)) == (3, "fp8", "kv_usage")
    assert target(LADDER, replace(full, preemptions_per_s=0.06)) == (3, "fp8", "kv_usage")
    assert target(LADDER, replace(full, level=1, kv_precision="auto")) == (2, "fp8", "kv_usage")


def test_a_switch_that_failed_is_passed_over_until_it_is_tried_again() -> None:
    failed = replace(FULL, level=2, kv_failed_s=NOW_S - 30, kv_failures=1)
    assert target(LADDER, failed) == (2, "fp8", "kv_usage")
    again = replace(failed, kv_failures=2)
    assert target(LADDER, again) == (3, "auto", "kv_usage")
    found = order(LADDER, replace(again, level=1))
    assert found is not None
    assert (found.level, found.kv_precision) == (3, "auto")
    assert "fp8_kv is passed over: a switch failed 2 times and is tried again later" in found.reason
    assert target(LADDER, again, NOW_S + 30) == (2, "fp8", "kv_usage")


def test_an_operator_is_obeyed_as_far_as_a_failing_switch_allows() -> None:
    failed = replace(FULL, level=4, kv_precision="fp8", kv_failed_s=NOW_S - 1, kv_failures=3)
    assert target(ladder(enabled=False), failed) == (0, "fp8", "disabled")
    assert target(ladder(enabled=False), replace(failed, level=0)) is None
    assert target(ladder(enabled=False), replace(failed, level=0), NOW_S + 120) == (0, "auto", "disabled")


def test_an_operators_level_waits_for_nobodys_turn() -> None:
    off = ladder(enabled=False)
    held = replace(FULL, level=3, kv_precision="fp8")
    assert names(off, held, replace(held, name="b"), replace(held, name="c")) == [
        ("a", 0, "auto"),
        ("b", 0, "fp8"),
        ("c", 0, "fp8"),
    ]
    assert names(off, held, replace(FULL, name="b", switching=True)) == [("a", 0, "fp8")]


def test_only_replicas_that_are_led_get_orders_and_all_others_count() -> None:
    theirs, ours = replace(FULL, level=1, kv_usage=0.99), replace(FULL, name="b", level=1)
    assert [one.replica for one in decide(LADDER, [theirs, ours], NOW_S, {"b"})] == ["b"]
    assert decide(LADDER, [replace(theirs, switching=True), ours], NOW_S, {"b"}) == ()
    assert decide(LADDER, [theirs, ours], NOW_S, set()) == ()
