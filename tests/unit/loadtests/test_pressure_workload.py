from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from cluster.config.engine import SimulatedConfig
from cluster.routing.latency_class import LatencyClass
from loadtests.pressure_workload import (
    CLASSES,
    LONGEST_TOKENS,
    THINK_S,
    Phases,
    Shape,
    Turn,
    mean_shape,
    rate_for,
    requests_for,
    workload,
)

PHASES = Phases(warm_up_s=20.0, surge_s=100.0, tail_s=30.0)


@pytest.fixture(scope="module")
def turns() -> tuple[Turn, ...]:
    return workload(1, 4.0, PHASES)


def test_the_same_seed_gives_the_same_requests_and_another_one_others(turns) -> None:
    assert workload(1, 4.0, PHASES) == turns
    other = workload(2, 4.0, PHASES)
    assert other != turns
    assert {turn.messages[0] for turn in other}.isdisjoint(turn.messages[0] for turn in turns)


def test_most_come_in_the_surge_at_its_rate_and_few_before_and_after(turns) -> None:
    times = [turn.at_s for turn in turns]
    assert times == sorted(times) and [turn.number for turn in turns] == list(range(len(turns)))
    full = [at for at in times if 26 <= at < 120]
    assert len(full) / 94 == pytest.approx(4.0, rel=0.2)
    calm = [at for at in times if at < 20 or at >= 120]
    assert len(calm) / 50 == pytest.approx(0.4, abs=0.3)
    assert max(times) < PHASES.seconds


def test_the_rate_rises_in_a_ramp() -> None:
    assert [Phases().share(at) for at in (0.0, 12.0, 15.0, 18.0, 81.9, 82.0)] == pytest.approx(
        [0.1, 0.1, 0.55, 1.0, 1.0, 0.1]
    )
    assert replace(PHASES, ramp_s=0.0).share(20.0) == 1.0
    with pytest.raises(ValueError, match="1800"):
        Phases(surge_s=5000.0)


def test_turns_of_a_session_carry_those_before_and_leave_time_to_think(turns) -> None:
    sessions: dict[int, list[Turn]] = {}
    for turn in turns:
        sessions.setdefault(turn.session, []).append(turn)
    assert len(sessions) > 50 and max(map(len, sessions.values())) >= 3
    for of_session in sessions.values():
        assert [turn.turn for turn in of_session] == list(range(len(of_session)))
        assert len({(turn.latency_class, turn.critical) for turn in of_session}) == 1
        for before, after in pairwise(of_session):
            assert after.messages[: len(before.messages)] == before.messages
            assert [role for role, _ in after.messages[len(before.messages) :]] == ["assistant", "user"]
            assert after.at_s - before.at_s >= THINK_S
    first = [of_session[0].messages[0][1][:24] for of_session in sessions.values()]
    assert len(set(first)) == len(first)


def test_prompts_are_long_and_answers_as_long_as_their_class(turns) -> None:
    assert all(240 <= turn.prompt_tokens <= LONGEST_TOKENS + 4 for turn in turns)
    for turn in turns:
        least, most = CLASSES[turn.latency_class].max_tokens
        assert least <= turn.max_tokens <= most
    assert {turn.latency_class for turn in turns} == set(LatencyClass)
    assert 0 < sum(turn.critical for turn in turns) < len(turns) / 4
    shape = mean_shape()
    assert sum(turn.prompt_tokens for turn in turns) / len(turns) == pytest.approx(shape.prompt, rel=0.1)
    assert sum(turn.max_tokens for turn in turns) / len(turns) == pytest.approx(shape.completion, rel=0.1)


def test_a_body_asks_for_a_stream_of_a_length_and_says_how_urgent_it_is(turns) -> None:
    critical = next(turn for turn in turns if turn.critical)
    body = critical.body("dense")
    assert body["pointsman"] == {"latency_class": critical.latency_class.value, "business_critical": True}
    assert (body["model"], body["stream"], body["ignore_eos"]) == ("dense", True, True)
    assert (body["temperature"], "top_p" in body) == (0.0, False)
    plain = next(turn for turn in turns if not turn.critical)
    assert plain.body("dense")["temperature"] == 0.7
    assert plain.body("dense")["pointsman"] == {"latency_class": plain.latency_class.value}


def test_three_times_the_pool_is_three_times_the_tokens() -> None:
    shape = Shape(prompt=400.0, completion=120.0)
    assert shape.held(128) == 400 + 60 + 64
    at_once = requests_for(3.0, 2816, 128, shape)
    assert at_once * shape.held(128) == pytest.approx(3 * 2816)
    assert requests_for(3.0, 5632, 128, shape) == pytest.approx(2 * at_once)


def test_at_the_rate_as_many_are_at_work_as_were_asked_for() -> None:
    shape, speed = Shape(prompt=400.0, completion=120.0), SimulatedConfig()
    rate = rate_for(10.0, shape, speed)
    prompt_s = 400 / speed.prefill_tokens_per_s
    step_s = speed.decode_step_base_s + 10 * speed.decode_step_per_seq_s
    seconds = (prompt_s + 120 * step_s) / (1 - rate * prompt_s)
    assert rate * seconds == pytest.approx(10.0)
    assert 0 < rate * prompt_s < 1
    assert rate_for(5.0, shape, speed) < rate


def test_too_many_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="5000"):
        workload(0, 400.0, PHASES)
