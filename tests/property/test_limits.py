from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.keys import KeyLimits
from cluster.limits import LimiterState, admit, settle

STEPS = st.lists(st.tuples(st.floats(0, 40, allow_nan=False), st.integers(0, 60)), max_size=60)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.integers(1, 8), st.integers(1, 100))
def test_no_window_of_a_minute_holds_more_than_the_limit(
    steps: list[tuple[float, int]], requests: int, tokens: int
) -> None:
    limits = KeyLimits(requests_per_minute=requests, tokens_per_minute=tokens)
    state, now = LimiterState(), 0.0
    admitted: list[tuple[float, int]] = []
    for gap, cost in steps:
        now += gap
        state, decision = admit(state, limits, now, cost)
        if decision.allowed:
            admitted.append((now, cost))
        assert len(state.requests) <= 61
        assert len(state.tokens) <= 61
    for start, _ in admitted:
        window = [cost for time, cost in admitted if start <= time < start + 60]
        assert len(window) <= requests
        assert sum(window) <= tokens


@settings(max_examples=150, deadline=None)
@given(STEPS, st.integers(1, 8), st.integers(1, 100))
def test_after_the_wait_that_was_named_the_request_is_admitted(
    steps: list[tuple[float, int]], requests: int, tokens: int
) -> None:
    limits = KeyLimits(requests_per_minute=requests, tokens_per_minute=tokens)
    state, now = LimiterState(), 0.0
    for gap, cost in steps:
        now += gap
        state, decision = admit(state, limits, now, cost)
        if not decision.allowed and decision.retry_after_s is not None:
            assert 0 < decision.retry_after_s <= 61
            assert admit(state, limits, now + decision.retry_after_s + 1e-6, cost)[1].allowed


@settings(max_examples=150, deadline=None)
@given(STEPS, st.integers(1, 8), st.integers(1, 100))
def test_a_higher_limit_never_refuses_what_a_lower_one_admits(
    steps: list[tuple[float, int]], requests: int, tokens: int
) -> None:
    low = KeyLimits(requests_per_minute=requests, tokens_per_minute=tokens)
    high = KeyLimits(requests_per_minute=requests + 3, tokens_per_minute=tokens + 50)
    state, now = LimiterState(), 0.0
    for gap, cost in steps:
        now += gap
        wider = admit(state, high, now, cost)[1]
        state, decision = admit(state, low, now, cost)
        assert wider.allowed or not decision.allowed


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 20, allow_nan=False), st.integers(0, 50), st.integers(0, 80)), max_size=40))
def test_settling_charges_exactly_what_was_used(steps: list[tuple[float, int, int]]) -> None:
    limits = KeyLimits(concurrency=3)
    state, now, used_in_all = LimiterState(), 1000.0, 0
    for gap, reserved, used in steps:
        now += gap / 100
        state, decision = admit(state, limits, now, reserved)
        assert decision.allowed
        state = settle(state, now, now, reserved, used)
        used_in_all += used
        assert state.running == 0
    assert sum(amount for _, amount in state.tokens) == used_in_all
