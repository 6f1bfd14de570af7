from __future__ import annotations

import json

import pytest
from rich.console import Console

from loadtests.burst.load import Kind
from loadtests.burst.offer import Outcome
from loadtests.pool_kills import Kill, KillPlan, KillReport, pool_of, report_json, table_of


def outcome(problem: str | None, *, resent: int = 0, degraded: int = 0, model: str = "sparse") -> Outcome:
    return Outcome(0, Kind.CODE, 1.0, 2.0, 200, problem, 12, 8, model, 0.5, resent, degraded)


REPORT = KillReport(
    [Kill(0, "1", 77, 4.0), Kill(1, "0", 78, 6.0)],
    [outcome(None, resent=3), outcome(None, degraded=2), outcome("closed"), outcome("timeout"), outcome(None)],
)


@pytest.mark.parametrize(
    ("title", "pool"),
    [
        ("ray::ServeReplica:pools-sparse:Pool-0", "0"),
        ("ray::ServeReplica:pools-sparse~2:Pool-11", "11"),
        ("ray::ServeReplica:pools-sparse:Pool-0 and what it does", "0"),
        ("ray::ServeReplica:pools-sparse:ExpertPools", None),
        ("ray::ServeReplica:pools-other:Pool-0", None),
        ("ray::ServeReplica:model-sparse:ModelReplica", None),
        ("pools-sparse:Pool-0", None),
    ],
)
def test_replicas_of_pools_are_told_by_their_title(title: str, pool: str | None) -> None:
    assert pool_of(title, "sparse") == pool


def test_lost_and_hung_are_told_apart() -> None:
    assert [one.problem for one in REPORT.lost] == ["closed"] and [one.problem for one in REPORT.hung] == ["timeout"]
    assert len(REPORT.resent) == 1 and len(REPORT.degraded) == 1 and not REPORT.simulated


def test_a_report_says_whether_it_is_simulated() -> None:
    simulated = KillReport(REPORT.kills, [outcome(None, model="sparse (simulated)")])
    assert json.loads(report_json(simulated, KillPlan(2, 1.0, 8, 60.0), {}))["simulated"] is True
    with pytest.raises(ValueError, match="simulated"):
        _ = KillReport([], [outcome(None), outcome(None, model="sparse (simulated)")]).simulated
    screen = Console(width=120)
    with screen.capture() as captured:
        screen.print(table_of(simulated))
    assert "(simulated engine)" in " ".join(captured.get().split())


def test_the_report_counts() -> None:
    found = json.loads(report_json(REPORT, KillPlan(2, 1.0, 8, 60.0), {"model": "sparse"}))
    assert found["requests"] == 5 and len(found["lost"]) == 1 and len(found["hung"]) == 1
    assert found["settings"]["kills"] == 2 and found["kills"][1]["replaced_s"] == 6.0
    screen = Console(width=120)
    with screen.capture() as captured:
        screen.print(table_of(REPORT))
    assert "6.00 s" in captured.get()
