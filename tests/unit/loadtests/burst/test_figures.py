from __future__ import annotations

import json
from dataclasses import replace

import pytest

from loadtests.burst.figures import SURGES, figures_of, hot_pools, in_flight, rows_per_s, windows_of
from loadtests.burst.load import Kind, saturating
from loadtests.burst.offer import outcome_of
from loadtests.burst.run import capacity_of
from loadtests.burst.watch import Look, WatchError, sample_of
from loadtests.client import Exchange, Failure
from loadtests.running_cluster import ClusterError
from tests.unit.loadtests.burst.made import BEGAN_AT, HIGH, PHASES, QUOTA, change, outcome, run, sample


def test_latencies_are_told_by_phase_and_for_both_surges() -> None:
    outcomes = [outcome(0, 5.0, 1.0), outcome(1, 12.0, 4.0), outcome(2, 35.0, 8.0), outcome(3, 40.0, 9.0, "shed")]
    found = figures_of(outcomes, [], PHASES, HIGH, BEGAN_AT)
    assert found.latency["calm before"].p50 == 1.0 and found.latency["calm after"].p50 is None
    assert found.latency["surge of code"].p95 == 4.0 and found.latency["surge of stories"].p95 == 8.0
    assert found.latency[SURGES].p50 == 6.0
    assert found.offered == 4 and found.completed == 3 and found.failed == {"shed": 1}
    assert found.waiting_share == pytest.approx(0.5)


def test_windows_tell_of_arrivals_and_of_what_is_under_way() -> None:
    windows = windows_of([outcome(0, 1.0, 2.0), outcome(1, 4.0, 8.0), outcome(2, 6.0, 1.0)], 10.0)
    assert [one.came for one in windows] == [2, 1, 0]
    assert [one.in_flight for one in windows] == [1, 1, 0]
    assert windows[0].latency.p50 == 5.0 and windows[2].latency.p50 is None
    assert in_flight([outcome(0, 1.0, 2.0), outcome(1, 2.0, 2.0)], [0.5, 1.0, 2.5, 3.0, 4.0]) == [0, 1, 2, 1, 0]


def test_tokens_of_a_request_spread_over_its_time() -> None:
    # 20 rows over 10 s, half of them before the time looked at begins.
    assert rows_per_s([outcome(0, 0.0, 10.0)], 5.0, 10.0) == pytest.approx(2.0)
    assert rows_per_s([outcome(0, 0.0, 10.0)], 10.0, 10.0) == 0.0


def test_simulated_answers_and_real_ones_are_never_mixed() -> None:
    mixed = [outcome(0, 1.0, 1.0), outcome(1, 2.0, 1.0, model="sparse (simulated)")]
    with pytest.raises(ValueError, match="simulated"):
        figures_of(mixed, [], PHASES, HIGH, BEGAN_AT)
    assert figures_of(mixed[1:], [], PHASES, HIGH, BEGAN_AT).simulated


def test_a_hot_pool_is_timed_from_the_first_look_above_high() -> None:
    samples = [
        sample(1.0, 60.0),
        sample(2.0, 40.0),
        sample(3.0, 60.0),
        sample(4.0, 70.0),
        sample(5.0, 80.0, (change("0", 4.2, None),)),
        sample(9.0, 80.0, (change("0", 4.2, 4.0), change("1", 8.0, 1.0, "cold")), replicas=2),
    ]
    (hot,) = hot_pools(samples, HIGH, BEGAN_AT)
    assert (hot.pool, hot.seen_s, hot.reason) == ("0", 2.5, "it was hot")
    assert hot.decided_s == pytest.approx(4.2) and hot.told_s == pytest.approx(8.2)
    assert hot.took_s == pytest.approx(5.7)


def test_changes_before_the_run_and_later_ones_of_a_pool_do_not_count() -> None:
    samples = [sample(1.0, 10.0, (change("0", -5.0, 1.0), change("0", 0.5, 2.0), change("0", 30.0, 1.0)))]
    (hot,) = hot_pools(samples, HIGH, BEGAN_AT)
    assert hot.decided_s == pytest.approx(0.5) and hot.seen_s is None and hot.took_s == pytest.approx(2.0)


def test_a_replica_that_never_came_has_no_time() -> None:
    (hot,) = hot_pools([sample(5.0, 80.0, (change("0", 4.2, None),))], HIGH, BEGAN_AT)
    assert hot.told_s is None and hot.took_s is None


def test_memory_and_use_of_the_quota_come_from_the_samples() -> None:
    figures = run("replicated", 1, 3.0, hot=True).figures
    assert figures.quota_used == pytest.approx(0.9)
    assert figures.memory["0"].weight_bytes == 2**20 and figures.memory["0"].overhead_bytes == 2**21


def test_capacity_is_measured_once_requests_are_under_way() -> None:
    outcomes = [replace(outcome(number, number * 1.0, 10.0), kind=list(Kind)[number % 2]) for number in range(20)]
    capacity = capacity_of(outcomes, [sample(float(at_s), 80.0) for at_s in range(12)], 12.0)
    # Ten requests of 20 rows at once, each over ten seconds.
    assert capacity.rows == 20.0 and 10 < capacity.rows_per_s <= 20
    assert capacity.by_quota == pytest.approx(2 * QUOTA / 60) and capacity.quota_used == pytest.approx(0.8)
    assert capacity.rate(1.5) == pytest.approx(1.5 * capacity.rows_per_s / 20)


def test_capacity_is_not_made_up() -> None:
    with pytest.raises(ClusterError, match="shed"):
        capacity_of([outcome(0, 1.0, 1.0, "shed")], [sample(5.0, 1.0)], 10.0)
    with pytest.raises(ClusterError, match="told nothing"):
        capacity_of([outcome(0, 1.0, 1.0)], [], 10.0)


def answered(status: int, body: object) -> Exchange:
    return Exchange(started=10.0, status=status, arrivals=[(12.0, json.dumps(body).encode())], ended=12.0)


def test_an_answer_is_read_with_what_pools_did() -> None:
    (request,) = saturating(1, 1, 8)
    pools = {"wait_s": 1.5, "resent_rows": 3, "degraded_rows": 2, "degraded": True}
    body = {
        "model": "sparse",
        "choices": [{"finish_reason": "length"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 8},
        "pointsman": {"experts": {"pools": pools}},
    }
    found = outcome_of(request, answered(200, body), 9.0, 4.0)
    assert found.problem is None and found.total_s == 3.0 and found.ended_s == 7.0 and found.rows == 19
    assert (found.wait_s, found.resent_rows, found.degraded_rows) == (1.5, 3, 2)


def test_what_is_no_whole_answer_says_why() -> None:
    (request,) = saturating(1, 1, 8)
    assert outcome_of(request, answered(503, {"error": {"code": "shed"}}), 9.0, 4.0).problem == "shed"
    assert outcome_of(request, answered(502, "?"), 9.0, 4.0).problem == "502"
    assert outcome_of(request, answered(200, {"choices": [{"finish_reason": None}]}), 9.0, 4.0).problem == "not whole"
    broken = Exchange(started=10.0, ended=11.0, failure=Failure.CLOSED)
    assert outcome_of(request, broken, 9.0, 4.0).problem == "closed"


def look(experts: object) -> Look:
    precision = {"models": {"sparse": {"replicas": [{"running": 3, "waiting": 2}, {"running": 1, "waiting": 0}]}}}
    return Look(7.0, json.dumps(experts).encode(), json.dumps(precision).encode())


def told(pools: object) -> object:
    return {"models": {"sparse": {"shape": {"layers": 30, "experts": 4, "top_k": 2}, "pools": pools}}}


def test_a_look_is_read() -> None:
    pools = {"version": 3, "layers": 30, "experts": 4, "memory_bytes": 9, "pools": [], "changes": [], "moved_pairs": 5}
    found = sample_of(look(told(pools | {"age_s": 0.4, "stale": False, "failed": None, "now_s": 1.0})), "sparse")
    assert (found.running, found.waiting, found.top_k, found.moved_pairs) == (4, 2, 2, 5)
    assert found.told_at_s == pytest.approx(6.6)


@pytest.mark.parametrize("experts", [{"models": {}}, told({"unavailable": "not yet"}), [], told(None)])
def test_a_cluster_that_does_not_tell_is_an_error(experts: object) -> None:
    with pytest.raises(WatchError, match="does not tell"):
        sample_of(look(experts), "sparse")
