"""What a run says: latencies by phase and over time, and how soon a hot pool had its second replica. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.burst.load import Phases
from loadtests.burst.offer import Outcome
from loadtests.burst.watch import Sample
from loadtests.records import SIMULATED, Spread, spread
from loadtests.stats import median

WINDOW_S = 5.0
SURGES = "surges"
"""The name of both surges together."""


@dataclass(frozen=True, slots=True)
class Window:
    """Requests that came within `WINDOW_S`."""

    at_s: float
    """When it begins, after the run's beginning."""
    came: int
    in_flight: int
    """Requests without an answer at its end, whether they run or wait."""
    latency: Spread


@dataclass(frozen=True, slots=True)
class Hot:
    """A pool that gained a replica. Times are seconds after the run's beginning."""

    pool: str
    seen_s: float | None
    """When it was first seen above `high`; None: that was between two looks."""
    decided_s: float
    reason: str
    told_s: float | None
    """When the trunk was told of the new replica; None: not before the run ended."""

    @property
    def took_s(self) -> float | None:
        """From hot to the second replica in the trunk's map."""
        if self.told_s is None:
            return None
        return self.told_s - min(self.decided_s, self.decided_s if self.seen_s is None else self.seen_s)


@dataclass(frozen=True, slots=True)
class Memory:
    """Of all replicas of a pool, at the time at which they were most."""

    replicas: int
    weight_bytes: int
    overhead_bytes: int


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run. Latencies are of whole answers, by when the request came."""

    offered: int
    completed: int
    failed: dict[str, int]
    simulated: bool
    latency: dict[str, Spread]
    """By phase, and `SURGES`."""
    windows: tuple[Window, ...]
    most_in_flight: int
    rows_per_s: float
    """Tokens computed a second, prompts too, while surges lasted."""
    quota_used: float
    """Of what the replicas that answered could compute in the surges, 0 to 1: the busiest pool, median over time."""
    waiting_share: float
    """Of the time of requests that came in surges: that the engine waited for pools."""
    hot: tuple[Hot, ...]
    memory: dict[str, Memory]
    moved_pairs: int
    resent_rows: int
    degraded_rows: int
    missed_looks: int


@dataclass(frozen=True, slots=True)
class ArmRun:
    """One arm of one round."""

    arm: str
    round: int
    began_at: float
    """Unix time, seconds."""
    outcomes: tuple[Outcome, ...]
    samples: tuple[Sample, ...]
    figures: Figures


def figures_of(
    outcomes: Sequence[Outcome],
    samples: Sequence[Sample],
    phases: Phases,
    high: float,
    began_at: float,
    missed: int = 0,
) -> Figures:
    """The figures of a run that began at a Unix time. Raises `ValueError` if simulated and real answers are mixed."""
    whole = [one for one in outcomes if one.problem is None]
    simulated = {one.model.endswith(SIMULATED) for one in whole}
    if len(simulated) > 1:
        raise ValueError("some answers came from a simulated engine and some from a real one")
    begin, end = _surges(phases)
    in_surges = [one for one in whole if begin <= one.at_s < end]
    latency = {
        phase.name: spread([one.total_s for one in whole if phases.at(one.at_s) == phase]) for phase in phases.all
    }
    latency[SURGES] = spread([one.total_s for one in in_surges])
    windows = windows_of(outcomes, phases.seconds)
    taken = sum(one.total_s for one in in_surges)
    return Figures(
        offered=len(outcomes),
        completed=len(whole),
        failed=dict(Counter(one.problem for one in outcomes if one.problem is not None)),
        simulated=True in simulated,
        latency=latency,
        windows=windows,
        most_in_flight=max((window.in_flight for window in windows), default=0),
        rows_per_s=rows_per_s(whole, begin, end),
        quota_used=_quota_used(samples, begin, end),
        waiting_share=sum(one.wait_s for one in in_surges) / taken if taken else 0.0,
        hot=hot_pools(samples, high, began_at),
        memory=_memory(samples),
        moved_pairs=samples[-1].moved_pairs - samples[0].moved_pairs if samples else 0,
        resent_rows=sum(one.resent_rows for one in whole),
        degraded_rows=sum(one.degraded_rows for one in whole),
        missed_looks=missed,
    )


def rows_per_s(outcomes: Sequence[Outcome], begin: float, end: float) -> float:
    """Tokens computed a second between two times; those of a request count as spread evenly over its time."""
    total = 0.0
    for one in outcomes:
        inside = min(end, one.ended_s) - max(begin, one.at_s)
        if inside > 0 and one.total_s > 0:
            total += one.rows * inside / one.total_s
    return total / (end - begin) if end > begin else 0.0


def windows_of(outcomes: Sequence[Outcome], seconds: float) -> tuple[Window, ...]:
    """From the run's beginning until all have ended."""
    last = max((one.ended_s for one in outcomes), default=0.0)
    found, at_s = [], 0.0
    while at_s < max(seconds, last):
        end = at_s + WINDOW_S
        came = [one for one in outcomes if at_s <= one.at_s < end]
        under_way = sum(one.at_s < end < one.ended_s for one in outcomes)
        found.append(Window(at_s, len(came), under_way, spread([one.total_s for one in came if one.problem is None])))
        at_s = end
    return tuple(found)


def in_flight(outcomes: Sequence[Outcome], times: Sequence[float]) -> list[int]:
    """Requests without an answer at each of these times."""
    return [sum(one.at_s <= at_s < one.ended_s for one in outcomes) for at_s in times]


def hot_pools(samples: Sequence[Sample], high: float, began_at: float) -> tuple[Hot, ...]:
    """Each first gain of a replica of each pool in the run, for heat."""
    if not samples:
        return ()
    # What a sample tells last of a change is the most that is known of it.
    known = {(one.pool, one.at_s): one for sample in samples for one in sample.changes if one.at_s >= began_at}
    found: dict[str, Hot] = {}
    for change in sorted(known.values(), key=lambda one: one.at_s):
        if change.cause != "hot" or change.before != 1 or change.pool in found:
            continue
        decided_s = change.at_s - began_at
        told_s = None if change.took_s is None else decided_s + change.took_s
        seen_s = _seen_above(samples, change.pool, high, decided_s)
        found[change.pool] = Hot(change.pool, seen_s, decided_s, change.reason, told_s)
    return tuple(found.values())


def _seen_above(samples: Sequence[Sample], pool: str, high: float, until_s: float) -> float | None:
    """Since when a pool was above `high` without a break until the decision."""
    since = None
    for sample in samples:
        if sample.told_at_s > until_s:
            break
        view = next((one for one in sample.pools if one.name == pool), None)
        able = 0.0 if view is None else view.capacity_pairs_per_s * len(view.replicas)
        above = view is not None and able > 0 and view.pairs_per_s > high * able
        since = (sample.told_at_s if since is None else since) if above else None
    return since


def _surges(phases: Phases) -> tuple[float, float]:
    """When the first surge begins and the last one ends."""
    spans = [(start, start + one.seconds) for one, start in zip(phases.all, phases.starts(), strict=True) if one.surge]
    return spans[0][0], spans[-1][1]


def _quota_used(samples: Sequence[Sample], begin: float, end: float) -> float:
    used = []
    for sample in samples:
        able = [
            one.pairs_per_s / (one.capacity_pairs_per_s * len(one.replicas))
            for one in sample.pools
            if one.capacity_pairs_per_s > 0 and one.replicas
        ]
        # The first seconds of a surge are those in which the meter follows.
        if able and begin + WINDOW_S <= sample.at_s < end:
            used.append(max(able))
    return median(used) if used else 0.0


def _memory(samples: Sequence[Sample]) -> dict[str, Memory]:
    found: dict[str, Memory] = {}
    for pool in (pool for sample in samples for pool in sample.pools):
        now = Memory(
            len(pool.replicas),
            sum(one.weight_bytes for one in pool.replicas),
            sum(one.overhead_bytes for one in pool.replicas),
        )
        if pool.name not in found or now.weight_bytes + now.overhead_bytes > (
            found[pool.name].weight_bytes + found[pool.name].overhead_bytes
        ):
            found[pool.name] = now
    return found
