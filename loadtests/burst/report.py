"""What the burst scenario showed: a line, tables, JSON. The picture is in `plot`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from rich.table import Table

from loadtests.burst.arms import ARMS, REPLICATED, STATIC
from loadtests.burst.figures import SURGES, ArmRun, Figures, Hot
from loadtests.stats import Interval, median, median_interval

GOAL: Final = 0.7
"""Part of the static arm's p95 in the surges that was asked for, at most."""
SOON_S: Final = 10.0
"""Within which a hot pool is to have its second replica."""
MEBIBYTE: Final = 2**20

Value = Callable[[Figures], float | None]

MEASURES: Final[dict[str, Value]] = {
    "p50 in the surges": lambda f: f.latency[SURGES].p50,
    "p95 in the surges": lambda f: f.latency[SURGES].p95,
    "p99 in the surges": lambda f: f.latency[SURGES].p99,
    "p95, surge of code": lambda f: f.latency["surge of code"].p95,
    "p95, surge of stories": lambda f: f.latency["surge of stories"].p95,
    "tokens/s in the surges": lambda f: f.rows_per_s,
    "most requests in flight": lambda f: float(f.most_in_flight),
}
P95: Final = "p95 in the surges"


@dataclass(frozen=True, slots=True)
class Ratio:
    """One measure with replicas over that without, by round."""

    measure: str
    rounds: tuple[float, ...]
    interval: Interval


def ratios_of(runs: Sequence[ArmRun]) -> tuple[Ratio, ...]:
    """All measures; a round counts where both arms have one, and the static arm's is above 0."""
    baseline = {run.round: run.figures for run in runs if run.arm == STATIC.name}
    measured = {run.round: run.figures for run in runs if run.arm == REPLICATED.name}
    found = []
    for measure, value in MEASURES.items():
        pairs = [
            (value(measured[number]), value(baseline[number])) for number in sorted(measured) if number in baseline
        ]
        rounds = tuple(above / below for above, below in pairs if above is not None and below)
        if rounds:
            found.append(Ratio(measure, rounds, median_interval(rounds)))
    return tuple(found)


def seconds_to_second(runs: Sequence[ArmRun]) -> list[float]:
    """From hot to the second replica, of all pools and rounds."""
    return [took for run in runs for one in run.figures.hot if (took := one.took_s) is not None]


def without_second(runs: Sequence[ArmRun]) -> list[Hot]:
    """Pools that were to gain a replica, of which trunks were not told before the run ended."""
    return [one for run in runs for one in run.figures.hot if one.told_s is None]


def simulated(runs: Sequence[ArmRun]) -> bool:
    """Whether the answers came from a simulated engine. Raises `ValueError` if some did and some did not."""
    found = {run.figures.simulated for run in runs if run.figures.completed}
    if len(found) > 1:
        raise ValueError("some runs are of a simulated engine and some of a real one")
    return True in found


def title(runs: Sequence[ArmRun], text: str) -> str:
    """A title that says so where the engine is simulated."""
    return f"{text} (simulated engine)" if simulated(runs) else text


def sentence(runs: Sequence[ArmRun]) -> str:
    """What it shows, in one line."""
    ratio = next((one for one in ratios_of(runs) if one.measure == P95), None)
    if ratio is None:
        return title(runs, "burst") + ": no round has both arms"
    of = {arm.name: [run.figures.latency[SURGES].p95 or 0.0 for run in runs if run.arm == arm.name] for arm in ARMS}
    middle = ratio.interval
    verdict = "reached" if middle.median <= GOAL else "missed"
    said = (
        f"{title(runs, 'burst')}: p95 in the surges {median(of[REPLICATED.name]):.1f} s with replicas by heat, "
        f"{median(of[STATIC.name]):.1f} s without: {_ratio(ratio)} of it "
        f"(goal {GOAL:.2f}: {verdict})"
    )
    took, never = seconds_to_second(runs), without_second(runs)
    if not took:
        return f"{said}; no pool had a second replica"
    soon = "reached" if max(took) <= SOON_S and not never else "missed"
    late = f", {len(never)} never" if never else ""
    return (
        f"{said}; second replica {median(took):.1f} s after a pool was hot, {max(took):.1f} s at most{late} "
        f"(goal {SOON_S:.0f} s: {soon})"
    )


def arms_table(runs: Sequence[ArmRun]) -> Table:
    """One column per arm: medians over the rounds, sums where requests are counted."""
    table = Table(
        title=title(runs, "burst: the arms"),
        title_justify="left",
        caption="medians of the rounds; counts are sums over all rounds",
    )
    table.add_column("measure")
    by_arm = {arm.name: [run.figures for run in runs if run.arm == arm.name] for arm in ARMS}
    for name in by_arm:
        table.add_column(name, justify="right")
    phases = list(runs[0].figures.latency) if runs else []

    def medians(value: Value, form: Callable[[float], str]) -> list[str]:
        known = [[one for one in map(value, figures) if one is not None] for figures in by_arm.values()]
        return [form(median(one)) if one else "-" for one in known]

    def counts(count: Callable[[Figures], int]) -> list[str]:
        return [str(sum(map(count, figures))) for figures in by_arm.values()]

    rows: list[tuple[str, list[str]]] = [
        ("requests offered", counts(lambda f: f.offered)),
        ("completed", counts(lambda f: f.completed)),
        ("failed, by reason", [_codes(figures) for figures in by_arm.values()]),
    ]
    rows += [
        *(
            (f"{name}, {phase}", medians(_latency(phase, name), "{:.2f} s".format))
            for phase in phases
            for name in ("p50", "p95", "p99")
        ),
        ("most requests in flight", medians(lambda f: float(f.most_in_flight), "{:.0f}".format)),
        ("tokens/s in the surges, prompts too", medians(lambda f: f.rows_per_s, "{:.1f}".format)),
        ("of its quota the busiest pool computed", medians(lambda f: f.quota_used, "{:.0%}".format)),
        ("time in which the engine waited for pools", medians(lambda f: f.waiting_share, "{:.0%}".format)),
        ("replicas at most, by pool", [_replicas(figures) for figures in by_arm.values()]),
        ("weights of all pools at most", medians(lambda f: _bytes(f, "weight_bytes"), _mebibytes)),
        ("overhead of all pools at most", medians(lambda f: _bytes(f, "overhead_bytes"), _mebibytes)),
        ("pairs of layer and expert moved", counts(lambda f: f.moved_pairs)),
        ("tokens times layers resent", counts(lambda f: f.resent_rows)),
        ("  with other experts standing in", counts(lambda f: f.degraded_rows)),
    ]
    for name, cells in rows:
        table.add_row(name, *cells)
    return table


def ratios_table(runs: Sequence[ArmRun]) -> Table:
    """With replicas over without."""
    table = Table(title=title(runs, "burst: with replicas by heat over without"), title_justify="left")
    for name in ("measure", "ratio, median [95 %]", "by round"):
        table.add_column(name)
    for ratio in ratios_of(runs):
        table.add_row(ratio.measure, _ratio(ratio), ", ".join(f"{one:.2f}" for one in ratio.rounds))
    return table


def hot_table(runs: Sequence[ArmRun]) -> Table:
    """When pools were hot, and when their second replica was there."""
    table = Table(title=title(runs, "burst: pools that became hot"), title_justify="left")
    for name in ("round", "pool", "hot at", "decided at", "trunk told at", "took", "reason"):
        table.add_column(name, justify="left" if name == "reason" else "right")
    for run in runs:
        for one in run.figures.hot:
            times = [one.seen_s, one.decided_s, one.told_s, one.took_s]
            cells = ["-" if time_s is None else f"{time_s:.1f} s" for time_s in times]
            table.add_row(str(run.round + 1), one.pool, *cells, one.reason)
    return table


def report_json(settings: dict[str, object], runs: Sequence[ArmRun]) -> str:
    """All figures, and what they are made of."""
    document = {
        "simulated": simulated(runs),
        "shows": sentence(runs),
        "settings": settings,
        "goals": {P95: GOAL, "seconds to a second replica": SOON_S},
        "seconds_to_second_replica": seconds_to_second(runs),
        "ratios": [asdict(one) for one in ratios_of(runs)],
        "runs": [
            {
                "arm": run.arm,
                "round": run.round,
                "began_at": run.began_at,
                "figures": asdict(run.figures),
                "samples": [asdict(sample) for sample in run.samples],
                "outcomes": [asdict(outcome) for outcome in run.outcomes],
            }
            for run in runs
        ],
    }
    return json.dumps(document, separators=(",", ":"))


def _ratio(ratio: Ratio) -> str:
    """The median with its interval, which one round does not have."""
    middle = ratio.interval
    bounds = f" [{middle.low:.2f}, {middle.high:.2f}]" if len(ratio.rounds) > 1 else ""
    return f"{middle.median:.2f}{bounds}"


def _latency(phase: str, name: str) -> Value:
    return lambda figures: getattr(figures.latency[phase], name)


def _bytes(figures: Figures, name: str) -> float:
    return float(sum(getattr(one, name) for one in figures.memory.values()))


def _mebibytes(count: float) -> str:
    return f"{count / MEBIBYTE:.1f} MiB"


def _codes(figures: Sequence[Figures]) -> str:
    total: dict[str, int] = {}
    for one in figures:
        for code, count in one.failed.items():
            total[code] = total.get(code, 0) + count
    return ", ".join(f"{code}: {count}" for code, count in sorted(total.items())) or "none"


def _replicas(figures: Sequence[Figures]) -> str:
    pools = sorted({pool for one in figures for pool in one.memory})
    return ", ".join(
        f"{pool}: {max(one.memory[pool].replicas for one in figures if pool in one.memory)}" for pool in pools
    )
