"""What the pressure scenario showed: tables and JSON. The picture is in `pressure_plot`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from rich.table import Table

from loadtests.bench_report import interval_text
from loadtests.pressure_arms import ARMS, FULL, KV_ONLY, OFF
from loadtests.pressure_figures import ArmRun, Figures
from loadtests.stats import Interval, median, median_interval

Value = Callable[[Figures], float | None]


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio to the arm without a ladder that was asked for."""

    arm: str
    name: str
    measure: str
    at_least: float | None = None
    at_most: float | None = None


GOALS: Final = (
    Goal(KV_ONLY.name, "tokens/s in the surge", "tokens_per_s", at_least=1.3),
    Goal(KV_ONLY.name, "preemptions per completed request", "preemptions_per_completed", at_most=0.65),
    Goal(FULL.name, "goodput", "goodput", at_least=1.5),
    Goal(FULL.name, "p95 of the whole answer", "total_p95_s", at_most=0.5),
)
MEASURES: Final[dict[str, Value]] = {
    "goodput": lambda f: f.goodput,
    "tokens_per_s": lambda f: f.tokens_per_s,
    "sent_tokens_per_s": lambda f: f.sent_tokens_per_s,
    "ttft_p50_s": lambda f: f.ttft.p50,
    "ttft_p95_s": lambda f: f.ttft.p95,
    "total_p95_s": lambda f: f.total.p95,
    "preemptions_per_completed": lambda f: f.preemptions_per_completed,
    "recomputed_tokens": lambda f: float(f.recomputed_tokens),
}


@dataclass(frozen=True, slots=True)
class Ratio:
    """One measure of an arm over that of the arm without a ladder, by round."""

    arm: str
    measure: str
    rounds: tuple[float, ...]
    interval: Interval


def ratios_of(runs: Sequence[ArmRun]) -> tuple[Ratio, ...]:
    """All measures of both ladders. A round counts where both have the measure, and the baseline's is above 0."""
    found = []
    for arm in (KV_ONLY.name, FULL.name):
        for measure, value in MEASURES.items():
            pairs = [(value(a.figures), value(b.figures)) for a, b in _pairs(runs, arm)]
            rounds = tuple(above / below for above, below in pairs if above is not None and below)
            if rounds:
                found.append(Ratio(arm, measure, rounds, median_interval(rounds)))
    return tuple(found)


def _pairs(runs: Sequence[ArmRun], arm: str) -> list[tuple[ArmRun, ArmRun]]:
    """The runs of an arm, each with that of the same round without a ladder."""
    baseline = {run.round: run for run in runs if run.arm == OFF.name}
    return [(run, baseline[run.round]) for run in runs if run.arm == arm and run.round in baseline]


def typical_round(runs: Sequence[ArmRun]) -> list[ArmRun]:
    """The runs of the round whose goodput ratio of the full ladder is the median one, in the order of the arms."""
    ranked = sorted(_pairs(runs, FULL.name), key=lambda pair: pair[0].figures.goodput - pair[1].figures.goodput)
    if not ranked:
        return []
    number = ranked[(len(ranked) - 1) // 2][0].round
    names = [arm.name for arm in ARMS]
    return sorted((run for run in runs if run.round == number), key=lambda run: names.index(run.arm))


def goals_met(ratios: Sequence[Ratio]) -> list[tuple[Goal, Ratio, bool]]:
    """Every goal, what was measured, and whether its median reaches it."""
    by = {(one.arm, one.measure): one for one in ratios}
    found = []
    for goal in GOALS:
        ratio = by.get((goal.arm, goal.measure))
        if ratio is None:
            continue
        low_enough = goal.at_most is None or ratio.interval.median <= goal.at_most
        high_enough = goal.at_least is None or ratio.interval.median >= goal.at_least
        found.append((goal, ratio, low_enough and high_enough))
    return found


def arms_table(runs: Sequence[ArmRun]) -> Table:
    """One column per arm: medians over the rounds, sums where requests are counted."""
    table = Table(
        title="pressure: the arms",
        title_justify="left",
        caption="medians of the rounds; counts are sums over all rounds",
    )
    table.add_column("measure")
    by_arm = {arm.name: [run.figures for run in runs if run.arm == arm.name] for arm in ARMS}
    for name in by_arm:
        table.add_column(name, justify="right")

    def counts(count: Callable[[Figures], int]) -> list[str]:
        return [str(sum(map(count, figures))) for figures in by_arm.values()]

    def medians(value: Value, digits: int, unit: str = "") -> list[str]:
        cells = []
        for figures in by_arm.values():
            known = [found for found in map(value, figures) if found is not None]
            cells.append(f"{median(known):.{digits}f}{unit}" if known else "-")
        return cells

    rows: list[tuple[str, list[str]]] = [
        ("requests offered", counts(lambda f: f.offered)),
        ("completed", counts(lambda f: f.completed)),
        ("failed, by code", [_codes(figures) for figures in by_arm.values()]),
        ("in target", counts(lambda f: f.in_target)),
        *(
            (f"  {name}, of those offered", [_share(figures, name) for figures in by_arm.values()])
            for name in _class_names(runs)
        ),
        ("goodput", medians(lambda f: f.goodput, 3)),
        ("tokens/s in the surge", medians(lambda f: f.tokens_per_s, 1)),
        ("  with answers that were cut off later", medians(lambda f: f.sent_tokens_per_s, 1)),
        ("TTFT p50", medians(lambda f: f.ttft.p50, 2, " s")),
        ("TTFT p95", medians(lambda f: f.ttft.p95, 2, " s")),
        ("whole answer p95", medians(lambda f: f.total.p95, 2, " s")),
        ("preemptions per completed request", medians(lambda f: f.preemptions_per_completed, 2)),
        ("  forced by switches", medians(lambda f: f.forced_per_completed, 2)),
        ("tokens computed again", medians(lambda f: float(f.recomputed_tokens), 0)),
        ("switches of the KV precision", counts(lambda f: f.switches)),
        ("highest level, by model", [_levels(figures) for figures in by_arm.values()]),
        ("answered by", [_answered(figures) for figures in by_arm.values()]),
        ("memory errors", counts(lambda f: f.memory_errors)),
        ("lived through a switch", counts(lambda f: f.lived_through_a_switch)),
        ("sampling changed (shortened)", [_changed(figures) for figures in by_arm.values()]),
        ("tokens under way over the pool, at most", medians(lambda f: f.asked_over_pool, 1, " times")),
    ]
    for name, cells in rows:
        table.add_row(name, *cells)
    return table


def ratios_table(ratios: Sequence[Ratio]) -> Table:
    """The ratios to the arm without a ladder, and the goals."""
    table = Table(
        title="over the ladder switched off",
        title_justify="left",
        caption="median of the rounds [95 % bootstrap interval]; with few rounds it is as wide as they are",
    )
    for name in ("measure", KV_ONLY.name, FULL.name):
        table.add_column(name, justify="left" if name == "measure" else "right")
    by = {(one.arm, one.measure): one for one in ratios}
    for measure in MEASURES:
        cells = [by.get((arm, measure)) for arm in (KV_ONLY.name, FULL.name)]
        table.add_row(measure, *("-" if one is None else interval_text(one.interval, digits=2) for one in cells))
    for goal, ratio, met in goals_met(ratios):
        asked = f"at least {goal.at_least:g}" if goal.at_least is not None else f"at most {goal.at_most:g}"
        verdict = f"{'reached' if met else 'missed'}: {ratio.interval.median:.2f}, {asked} is the goal"
        table.add_row(f"goal: {goal.name}", *(verdict if goal.arm == arm else "" for arm in (KV_ONLY.name, FULL.name)))
    return table


def timeline_table(runs: Sequence[ArmRun]) -> Table:
    """Every change of precision in these runs, as `pointsman precision timeline` has it."""
    table = Table(title="changes of precision", title_justify="left")
    for name in ("arm", "after", "model", "level", "KV", "pause ms", "preempted", "reason"):
        table.add_column(
            name, justify="right" if name in ("after", "pause ms", "preempted") else "left", overflow="fold"
        )
    for run in runs:
        for row in run.timeline:
            switched = row["kv_before"] != row["kv_after"]
            table.add_row(
                run.arm,
                f"{row['at'] - run.began_at:.1f} s",
                row["model"],
                f"{row['level_before']} → {row['level']} {row['level_name']}",
                f"{row['kv_before']} → {row['kv_after']}" if switched else "",
                f"{1000 * row['pause_s']:.0f}" if switched else "",
                str(row["preempted"]) if switched else "",
                row["reason"] if row["error"] is None else f"failed: {row['error']}",
            )
    return table


def report_json(settings: dict[str, object], runs: Sequence[ArmRun], ratios: Sequence[Ratio]) -> str:
    """Everything that was set and measured."""
    goals = [
        {"goal": asdict(goal), "median": ratio.interval.median, "met": met} for goal, ratio, met in goals_met(ratios)
    ]
    document = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "settings": settings,
        "goals": goals,
        "ratios": [asdict(one) for one in ratios],
        "runs": [{**asdict(run), "goodput": run.figures.goodput} for run in runs],
    }
    return json.dumps(document, indent=1)


def _class_names(runs: Sequence[ArmRun]) -> list[str]:
    return list(runs[0].figures.classes) if runs else []


def _share(figures: Sequence[Figures], name: str) -> str:
    offered = sum(one.classes[name].offered for one in figures)
    return f"{sum(one.classes[name].in_target for one in figures)} of {offered}"


def _added(tables: Sequence[dict[str, int]]) -> dict[str, int]:
    names = dict.fromkeys(name for one in tables for name in one)
    return {name: sum(one.get(name, 0) for one in tables) for name in names}


def _codes(figures: Sequence[Figures]) -> str:
    return ", ".join(f"{code}: {count}" for code, count in _added([f.failed for f in figures]).items()) or "none"


def _answered(figures: Sequence[Figures]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in _added([f.answered_by for f in figures]).items())


def _levels(figures: Sequence[Figures]) -> str:
    names = dict.fromkeys(name for one in figures for name in one.levels)
    return ", ".join(f"{name}: {max(one.levels.get(name, 0) for one in figures)}" for name in names)


def _changed(figures: Sequence[Figures]) -> str:
    return f"{sum(one.sampling_changed for one in figures)} ({sum(one.shortened for one in figures)})"
