from cluster.keys import KeyLimits
from cluster.limits import LimiterState, admit, prune, refused, settle

LIMITS = KeyLimits(requests_per_minute=2, tokens_per_minute=100, concurrency=5)


def test_a_request_within_limits_is_admitted_with_headers() -> None:
    state, decision = admit(LimiterState(), LIMITS, 1000.5, 30)
    assert decision.allowed
    assert state.running == 1
    assert decision.headers == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "61s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "70",
        "x-ratelimit-reset-tokens": "61s",
    }


def test_the_wait_is_computed_and_right() -> None:
    state = LimiterState()
    for now in (1000.5, 1010.0):
        state, _ = admit(state, LIMITS, now, 10)
    unchanged, decision = admit(state, LIMITS, 1020.0, 10)
    assert not decision.allowed
    assert decision.reason == "limit of 2 requests per minute"
    assert decision.retry_after_s == 41.0
    assert unchanged.requests == state.requests
    error = refused(decision)
    assert (error.status, error.headers["retry-after"]) == (429, "41")
    assert not admit(state, LIMITS, 1060.9, 10)[1].allowed
    assert admit(state, LIMITS, 1061.0, 10)[1].allowed


def test_tokens_are_limited_and_settled() -> None:
    limits = KeyLimits(tokens_per_minute=100)
    state, _ = admit(LimiterState(), limits, 0.0, 80)
    assert not admit(state, limits, 1.0, 30)[1].allowed
    state = settle(state, 2.0, 0.0, 80, 20)
    assert state.running == 0
    state, decision = admit(state, limits, 3.0, 80)
    assert decision.allowed
    state = settle(state, 4.0, 3.0, 80, 500)
    assert admit(state, limits, 64.9, 1)[1].reason == "limit of 100 tokens per minute"
    assert admit(state, limits, 65.0, 1)[1].allowed


def test_a_request_larger_than_the_limit_is_told_so() -> None:
    _, decision = admit(LimiterState(), LIMITS, 0.0, 101)
    assert not decision.allowed
    error = refused(decision)
    assert "larger than the limit of 100" in error.message
    assert "retry-after" not in error.headers


def test_concurrency_is_limited_and_freed() -> None:
    limits = KeyLimits(concurrency=1)
    state, _ = admit(LimiterState(), limits, 0.0, 5)
    _, decision = admit(state, limits, 0.0, 5)
    assert decision.reason == "limit of 1 requests at once"
    assert refused(decision).headers == {"retry-after": "1"}
    assert admit(settle(state, 1.0, 0.0, 5, 5), limits, 1.0, 5)[1].allowed


def test_without_limits_everything_is_admitted_without_headers() -> None:
    _, decision = admit(LimiterState(), KeyLimits(), 0.0, 10**9)
    assert decision.allowed
    assert decision.headers == {}


def test_a_clock_that_goes_back_gives_nothing_back() -> None:
    state, _ = admit(LimiterState(), LIMITS, 1000.0, 1)
    state, _ = admit(state, LIMITS, 5.0, 1)
    assert not admit(state, LIMITS, 5.0, 1)[1].allowed


def test_states_are_bounded() -> None:
    states = {}
    for index in range(10):
        states[f"k{index}"], _ = admit(LimiterState(), LIMITS, float(index), 1)
    states["idle"] = settle(states["k0"], 0.0, 0.0, 1, 1)
    assert set(prune(states, 9.0, 3)) == {"k9", "k8", "k7"}
    assert "idle" not in prune(states, 200.0, 100)
    assert set(prune(states, 200.0, 100)) == {f"k{index}" for index in range(10)}
