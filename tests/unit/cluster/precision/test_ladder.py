from dataclasses import replace
from math import inf
from typing import Any

import pytest

from cluster.precision.ladder import Ladder, ReplicaState, is_calm, is_pressed, switch_cost_s
from cluster.precision.measures import Measure
from cluster.precision.replica import own_usage
from tests.unit.cluster.precision.made_ladders import (
    CALM,
    FULL,
    LADDER,
    NOW_S,
    QUALITY,
    WITHOUT_TWIN,
    ladder,
    order,
    target,
)


@pytest.mark.parametrize(
    ("figures", "cause"),
    [
        ({}, None),
        ({"kv_usage": 0.89}, None),
        ({"kv_usage": 0.9}, "kv_usage"),
        ({"preemptions_per_s": 0.5}, "preemptions"),
        ({"queue_growth_per_s": 5.0, "kv_usage": 0.51}, "queue_growth"),
        ({"queue_growth_per_s": 0.9, "kv_usage": 0.51}, None),
        # The cache has room, so the processor is what they wait for.
        ({"queue_growth_per_s": 5.0, "kv_usage": 0.5}, None),
    ],
)
def test_what_is_pressure(figures: dict[str, float], cause: str | None) -> None:
    found = is_pressed(LADDER.config.enter, LADDER.config.leave, replace(CALM, **figures))
    assert (found[0] if found else None) == cause
    assert target(LADDER, replace(CALM, **figures)) == ((1, "auto", cause) if cause else None)


@pytest.mark.parametrize("field", ["kv_usage", "preemptions_per_s"])
def test_what_is_calm(field: str) -> None:
    leave = LADDER.config.leave
    limit = getattr(leave, field)
    assert is_calm(leave, replace(CALM, **{field: limit}))
    assert not is_calm(leave, replace(CALM, **{field: limit + 0.01}))
    # A queue in front of a cache with room is the processor's.
    assert is_calm(leave, replace(CALM, queue_growth_per_s=50.0))


def test_a_replica_goes_down_rung_by_rung_and_no_further_than_the_last() -> None:
    assert target(LADDER, FULL) == (1, "auto", "kv_usage")
    assert target(LADDER, replace(FULL, level=1)) == (2, "fp8", "kv_usage")
    assert target(LADDER, replace(FULL, level=2, kv_precision="fp8")) == (3, "fp8", "kv_usage")
    assert target(LADDER, replace(FULL, level=3, kv_precision="fp8")) == (4, "fp8", "kv_usage")
    assert target(LADDER, replace(FULL, level=4, kv_precision="fp8")) is None


@pytest.mark.parametrize("since", [{"level_since_s": NOW_S - 29}, {"kv_switched_s": NOW_S - 29}])
def test_it_rests_between_two_changes(since: dict[str, float]) -> None:
    assert target(LADDER, replace(FULL, **since)) is None
    assert target(LADDER, replace(FULL, **since), NOW_S + 1) == (1, "auto", "kv_usage")
    resting = replace(CALM, level=1, **since)
    assert target(LADDER, resting) is None
    assert target(LADDER, resting, NOW_S + 1) == (0, "auto", "calm")


def test_rungs_that_are_not_usable_are_passed_over_and_named() -> None:
    found = order(ladder(model={}), replace(FULL, level=1))
    assert found is not None
    assert (found.level, found.kv_precision) == (4, "auto")
    assert "95%" in found.reason
    assert "fp8_kv is passed over: its quality is not measured: run `pointsman precision measure large`" in found.reason
    assert "twin is passed over: no twin is configured" in found.reason
    last = ladder(model={}, levels=["conservative_sampling", "fp8_kv", "twin"])
    assert target(last, replace(FULL, level=1)) is None


@pytest.mark.parametrize(
    ("rules", "state", "words"),
    [
        (LADDER, FULL, None),
        (LADDER, replace(FULL, kv_precisions=()), "cannot switch"),
        (ladder(model={"twin": "small"}), FULL, "precision measure large"),
        (ladder(min_agreement=0.995), FULL, "99.0% of the tokens, 99.5%"),
        (ladder(max_kl=0.001), FULL, "0.01 nats, 0.001"),
        (ladder(engine={"kv_cache_dtype": "fp8"}), FULL, "8 bits already"),
    ],
)
def test_why_fp8_is_not_usable(rules: Ladder, state: ReplicaState, words: str | None) -> None:
    why = rules.unusable(Measure.FP8_KV, state)
    assert why is None if words is None else words in (why or "")
    assert rules.unusable(Measure.CONSERVATIVE_SAMPLING, state) is None
    assert rules.unusable(Measure.SHED, state) is None
    expected = (2, "fp8", "kv_usage") if words is None else (3, "auto", "kv_usage")
    assert target(rules, replace(state, level=1)) == expected


def test_what_a_switch_costs() -> None:
    state = replace(CALM, kv_usage=0.5, prefix_hits_per_s=10, prefill_tokens_per_s=100)
    assert switch_cost_s(state, 20) == 7.0
    # More than the cache holds beside what runs cannot be lost.
    assert switch_cost_s(state, 80) == 10.0
    assert switch_cost_s(replace(state, prefill_tokens_per_s=None), 20) is None
    assert switch_cost_s(replace(state, prefill_tokens_per_s=0.0), 20) is None


DEAR = {"prefill_tokens_per_s": 10.0}
CHEAP = {"prefill_tokens_per_s": 1000.0}


def test_a_switch_that_is_too_dear_is_passed_over_and_made_up_for() -> None:
    found = order(LADDER, replace(FULL, level=1, **DEAR))
    assert found is not None
    assert (found.level, found.kv_precision) == (3, "auto")
    assert "95 s, more than the 30 s" in found.reason
    passed = replace(FULL, level=3)
    assert target(LADDER, replace(passed, **DEAR)) == (4, "auto", "kv_usage")
    assert target(LADDER, replace(passed, **CHEAP)) == (3, "fp8", "kv_usage")
    assert target(LADDER, replace(passed, level=4, **CHEAP)) == (4, "fp8", "kv_usage")
    assert target(LADDER, replace(passed, level=4, **DEAR)) is None
    assert target(LADDER, replace(passed, level_since_s=NOW_S - 1, **CHEAP)) is None
    preempting = replace(passed, kv_usage=0.6, preemptions_per_s=1)
    assert target(LADDER, preempting) == (3, "fp8", "preemptions")
    # Only pressure on the cache is worth what it holds.
    queueing = replace(passed, kv_usage=0.6, queue_growth_per_s=2)
    assert target(LADDER, queueing) == (4, "auto", "queue_growth")


def test_calm_goes_up_rung_by_rung() -> None:
    low = replace(CALM, kv_precision="fp8", own_kv_tokens=500)
    assert target(LADDER, replace(low, level=4)) == (3, "fp8", "calm")
    assert target(LADDER, replace(low, level=3)) == (2, "fp8", "calm")
    assert target(LADDER, replace(low, level=2)) == (1, "auto", "calm")
    assert target(LADDER, replace(CALM, level=1)) == (0, "auto", "calm")
    assert target(LADDER, CALM) is None


@pytest.mark.parametrize("calm", [{"calm_since_s": None}, {"calm_since_s": NOW_S - 29}, {"kv_usage": 0.51}])
def test_calm_must_last(calm: dict[str, Any]) -> None:
    assert target(LADDER, replace(CALM, level=1, **calm)) is None


def test_the_smaller_cache_must_hold_it() -> None:
    state = replace(CALM, level=2, kv_precision="fp8", kv_usage=0.3, own_kv_tokens=500)
    assert own_usage(state) == pytest.approx(0.6)
    assert not LADDER.is_calm(state)
    assert target(LADDER, state) is None
    assert target(LADDER, replace(state, kv_usage=0.25)) == (1, "auto", "calm")
    # One level up the cache stays as it is.
    assert LADDER.is_calm(replace(state, level=3))
    assert target(LADDER, replace(state, level=3)) == (2, "fp8", "calm")
    assert own_usage(replace(state, own_kv_tokens=0)) == 0.3
    assert own_usage(replace(state, own_kv_tokens=0, kv_tokens=0)) == 0.3


def test_the_way_up_from_fp8_waits_until_it_is_worth_it() -> None:
    state = replace(CALM, level=2, kv_precision="fp8")
    assert target(LADDER, replace(state, prefill_tokens_per_s=5.0)) is None
    assert target(LADDER, replace(state, prefill_tokens_per_s=10.0)) == (1, "auto", "calm")


def test_the_way_up_jumps_over_what_gives_nothing_back() -> None:
    assert target(ladder(model={}), replace(CALM, level=4)) == (1, "auto", "calm")
    assert target(ladder(model={}, levels=["twin", "shed"]), replace(CALM, level=2)) == (0, "auto", "calm")
    # fp8_kv was passed over, so there is nothing of it to leave.
    assert target(LADDER, replace(CALM, level=3)) == (1, "auto", "calm")
    assert target(ladder(levels=["twin", "fp8_kv"]), replace(CALM, level=2)) == (1, "auto", "calm")


@pytest.mark.parametrize(
    ("rules", "state", "expected"),
    [
        (ladder(enabled=False), replace(FULL, level=4, kv_precision="fp8"), (0, "auto")),
        (ladder(enabled=False), FULL, None),
        (ladder(levels=["conservative_sampling"]), replace(FULL, level=3, kv_precision="fp8"), (1, "auto")),
        (ladder(levels=["conservative_sampling", "fp8_kv"]), replace(FULL, level=3, kv_precision="fp8"), (2, "fp8")),
        (ladder(levels=[]), replace(FULL, level=3), (0, "auto")),
        (ladder(model=WITHOUT_TWIN), replace(FULL, level=3, kv_precision="fp8"), (2, "fp8")),
        (ladder(model={}), replace(FULL, level=3, kv_precision="fp8"), (1, "auto")),
        (ladder(min_agreement=1), replace(FULL, level=2, kv_precision="fp8"), (1, "auto")),
        (ladder(min_agreement=1), replace(FULL, level=3, kv_precision="fp8"), (3, "auto")),
        (LADDER, replace(FULL, level=1, kv_precision="fp8"), (1, "auto")),
    ],
)
def test_what_is_not_usable_any_more_ends_at_once(
    rules: Ladder, state: ReplicaState, expected: tuple[int, str] | None
) -> None:
    for since_s in (NOW_S, -inf):
        state = replace(state, level_since_s=since_s, kv_switched_s=since_s)
        assert target(rules, state) == ((*expected, "disabled") if expected else None)


def test_a_reason_says_what_ended() -> None:
    found = order(ladder(min_agreement=1), replace(FULL, level=3, kv_precision="fp8"))
    assert found is not None
    assert found.reason == (
        "fp8_kv is not usable any more: it agrees on 99.0% of the tokens, 100.0% are asked for; back to level 3 (twin), "
        "KV cache auto"
    )


def test_an_engine_that_cannot_switch_is_not_told_to() -> None:
    stuck = replace(FULL, kv_precision="fp8", kv_precisions=())
    assert target(ladder(enabled=False), stuck) is None
    assert target(ladder(model={"pinned": 0}), stuck) is None
    assert target(LADDER, replace(stuck, level=2)) == (1, "fp8", "disabled")
    assert target(LADDER, replace(stuck, level=1)) == (3, "fp8", "kv_usage")
    assert target(LADDER, replace(stuck, level=1, kv_usage=0.1, calm_since_s=0.0)) == (0, "fp8", "calm")


@pytest.mark.parametrize(
    ("pinned", "state", "expected"),
    [
        (3, CALM, (3, "fp8")),
        (2, replace(CALM, level=2), (2, "fp8")),
        (1, replace(FULL, level=3, kv_precision="fp8"), (1, "auto")),
        (0, replace(FULL, level=1), (0, "auto")),
        (0, FULL, None),
        (3, replace(CALM, kv_precisions=()), (3, "auto")),
        # The operator wants it, whatever it costs.
        (2, replace(FULL, level=1, **DEAR), (2, "fp8")),
    ],
)
def test_a_pinned_level_is_gone_to_at_once(pinned: int, state: ReplicaState, expected: tuple[int, str] | None) -> None:
    rules = ladder(model={"twin": "small", "kv_quality": {"fp8": QUALITY}, "pinned": pinned})
    for since_s in (NOW_S, -inf):
        state = replace(state, level_since_s=since_s, kv_switched_s=since_s)
        assert target(rules, state) == ((*expected, "pinned") if expected else None)


def test_a_level_pinned_without_a_usable_measure_says_so() -> None:
    found = order(ladder(model={"pinned": 2}), CALM)
    assert found is not None
    assert (found.level, found.kv_precision) == (2, "auto")
    assert "without fp8_kv: its quality is not measured" in found.reason
