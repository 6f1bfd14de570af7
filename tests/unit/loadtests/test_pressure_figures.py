from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.routing.latency_class import LatencyClass
from loadtests.pressure_figures import figures_of, most_under_way
from tests.unit.loadtests.pressure_made import PHASES, POOL, outcome, run, samples

SEEN = samples((0, 1, 2, 3, 2, 0), preemptions=6)


def test_goodput_counts_rejects_and_late_ones_against_it() -> None:
    outcomes = [
        outcome(0),
        outcome(1, latency_class=LatencyClass.INTERACTIVE, ttft_s=9.0),
        outcome(2, status=503, code="shed", completion_tokens=0, arrivals=()),
        outcome(3, total_s=31.0),
        outcome(4, completion_tokens=8, changed=("max_tokens 10 -> 8",), switches=1, model="mini"),
    ]
    found = figures_of(outcomes, SEEN, PHASES, POOL)
    assert (found.offered, found.completed, found.in_target, found.goodput) == (5, 4, 2, 0.4)
    assert found.failed == {"shed": 1}
    assert (found.classes["standard"].offered, found.classes["standard"].completed) == (4, 3)
    assert (found.classes["interactive"].in_target, found.classes["batch"].offered) == (0, 0)
    assert (found.shortened, found.sampling_changed, found.lived_through_a_switch) == (1, 1, 1)
    assert found.answered_by == {"dense": 3, "mini": 1}
    assert (found.memory_errors, found.window_s) == (0, 34.0)


def test_preemptions_are_those_of_the_run_per_completed_request() -> None:
    found = figures_of([outcome(0), outcome(1), outcome(2, code="timeout")], SEEN, PHASES, POOL)
    assert (found.preemptions, found.preemptions_per_completed) == (6, 3.0)
    assert found.levels == {"dense": 3, "mini": 0}
    assert figures_of([], SEEN, PHASES, POOL).preemptions_per_completed == 0.0
    with pytest.raises(ValueError, match="two samples"):
        figures_of([outcome(0)], SEEN[:1], PHASES, POOL)


def test_speed_is_of_the_surge_and_of_whole_answers() -> None:
    # The surge lasts from 2 to 12 s; each answer has 4 tokens half a second after it came and 6 after two seconds.
    outcomes = [outcome(0), outcome(1), outcome(5), outcome(11), outcome(6, code="timeout")]
    found = figures_of(outcomes, SEEN, PHASES, POOL)
    assert found.tokens_per_s == (6 + 6 + 10 + 4) / 10
    assert found.sent_tokens_per_s == (6 + 6 + 10 + 4 + 10) / 10


def test_errors_of_memory_are_failures_for_another_reason_and_dead_engines() -> None:
    dead = (*SEEN[:-1], replace(SEEN[-1], engine_deaths=2))
    outcomes = [outcome(0, status=502, code="replica_lost"), outcome(1, status=503, code="shed"), outcome(2)]
    assert figures_of(outcomes, dead, PHASES, POOL).memory_errors == 3


def test_under_way_is_what_came_and_has_not_ended() -> None:
    assert most_under_way([outcome(0), outcome(1), outcome(2), outcome(9)]) == 80
    assert run("full ladder", 0, 10).figures.asked_over_pool == 80 / POOL
    assert most_under_way([]) == 0


def test_the_p95_of_all_knows_those_that_were_never_answered() -> None:
    outcomes = [outcome(at, total_s=float(at)) for at in range(20)]
    assert figures_of(outcomes, SEEN, PHASES, POOL).total_of_all_p95_s == 19.0
    outcomes[3] = outcome(3, code="shed")
    assert figures_of(outcomes, SEEN, PHASES, POOL).total_of_all_p95_s is None
