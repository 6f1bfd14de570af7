"""Runs of the burst scenario that are made up."""

from __future__ import annotations

from cluster.experts.pools_view import ChangeView, PoolView, ReplicaView
from loadtests.burst.figures import ArmRun, figures_of
from loadtests.burst.load import Kind, Phases, requests_of
from loadtests.burst.offer import Outcome
from loadtests.burst.watch import Sample

PHASES = Phases(before_s=10.0, code_s=20.0, stories_s=20.0, after_s=10.0)
BEGAN_AT = 1_000.0
QUOTA = 100.0
HIGH = 0.5


def pool(name: str, replicas: int, pairs_per_s: float) -> PoolView:
    answering = tuple(
        ReplicaView(f"{name}-{number}", "node", 1, pairs_per_s / replicas, 0, 2**20, 2**21)
        for number in range(replicas)
    )
    return PoolView(name, 60, replicas, pairs_per_s, QUOTA, answering)


def change(pool_name: str, at_s: float, took_s: float | None, cause: str = "hot") -> ChangeView:
    """At so many seconds after the run's beginning."""
    after = 2 if cause == "hot" else 1
    return ChangeView(pool_name, 3 - after, after, cause, f"it was {cause}", BEGAN_AT + at_s, took_s)


def sample(at_s: float, hot: float, changes: tuple[ChangeView, ...] = (), replicas: int = 1) -> Sample:
    """Pool `0` gets `hot` pairs a second, pool `1` ten."""
    pools = pool("0", replicas, hot), pool("1", 1, 10.0)
    return Sample(at_s, 0.5, 3, 1, pools, changes, 0, 30, 4, 2)


def outcome(number: int, at_s: float, total_s: float, problem: str | None = None, model: str = "sparse") -> Outcome:
    return Outcome(
        number, Kind.CODE, at_s, total_s, 200 if problem is None else 429, problem, 12, 9, model, total_s / 2
    )


def run(arm: str, number: int, seconds: float, *, hot: bool = False, simulated: bool = False) -> ArmRun:
    """All requests take so long in the surges, and one second in the calm."""
    model = "sparse (simulated)" if simulated else "sparse"
    outcomes = [
        outcome(one.number, one.at_s, seconds if PHASES.at(one.at_s).surge else 1.0, model=model)
        for one in requests_of(number, 2.0, PHASES, 9)
    ]
    changes = (change("0", 14.0, 4.5),) if hot else ()
    samples = [
        sample(float(at_s), 90.0 if 12 <= at_s < 50 else 20.0, changes if at_s >= 14 else ()) for at_s in range(60)
    ]
    figures = figures_of(outcomes, samples, PHASES, HIGH, BEGAN_AT)
    return ArmRun(arm, number, BEGAN_AT, tuple(outcomes), tuple(samples), figures)
