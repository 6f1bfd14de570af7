"""The picture of the burst scenario: a column per arm, and over time requests in flight, latencies, replicas, pairs a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from loadtests.burst.arms import ARMS
from loadtests.burst.figures import SURGES, WINDOW_S, ArmRun, in_flight
from loadtests.burst.load import Kind, Phases

COLOURS: Final = ("#1f77b4", "#e07b00", "#2ca02c", "#c0392b", "#8e44ad", "#7f7f7f")
SHADES: Final = {Kind.CODE: "#dce9f5", Kind.STORY: "#fbe6cc", Kind.QUESTION: "#e8f4e4"}
GREY: Final = "#888888"
_LEGEND: Final[dict[str, Any]] = {"fontsize": 8, "loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "frameon": False}


def plot(path: Path, title: str, runs: Sequence[ArmRun], phases: Phases) -> None:
    """Write the picture (PNG) of one round. Raises `ValueError` for no runs."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    if not runs:
        raise ValueError("there is nothing to draw")
    names = [arm.name for arm in ARMS]
    shown = sorted(runs, key=lambda run: names.index(run.arm))
    size = (5.2 * len(shown) + 1.4, 10.0)
    figure, axes = plt.subplots(
        4, len(shown), figsize=size, sharex=True, sharey="row", squeeze=False, layout="constrained"
    )
    figure.suptitle(title, fontsize=12)
    labels = ("requests in flight", "latency by arrival, s", "replicas of a pool", "pairs a second of a pool")
    for column, run in enumerate(shown):
        drawn = [axes[row][column] for row in range(4)]
        p95 = run.figures.latency[SURGES].p95
        told = "no answers in the surges" if p95 is None else f"p95 in the surges {p95:.1f} s"
        drawn[0].set_title(f"{run.arm}: {told}", fontsize=10)
        _requests(drawn[0], run)
        _latencies(drawn[1], run)
        _replicas(drawn[2], run)
        _pairs(drawn[3], run)
        for axis, label in zip(drawn, labels, strict=True):
            _shade(axis, phases)
            if column == 0:
                axis.set_ylabel(label)
            if column == len(shown) - 1:
                axis.legend(**_LEGEND)
        drawn[3].set_xlabel("seconds since the run began")
    # Only now: the arms share their axes, and a limit that is set ends their growth.
    for axis in (one for row in axes for one in row):
        axis.set_ylim(bottom=0)
        axis.set_xlim(left=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _shade(axis: Any, phases: Phases) -> None:  # noqa: ANN401 - matplotlib's axes have no useful type here
    """The background says which surge goes on."""
    for phase, start in zip(phases.all, phases.starts(), strict=True):
        if phase.kind is not None:
            colour = SHADES[phase.kind]
            axis.axvspan(start, start + phase.seconds, color=colour, linewidth=0, zorder=0, label=phase.name)


def _requests(axis: Any, run: ArmRun) -> None:  # noqa: ANN401 - as above
    ends = max((one.ended_s for one in run.outcomes), default=0.0)
    times = [number * 0.5 for number in range(int(ends / 0.5) + 2)]
    axis.plot(times, in_flight(run.outcomes, times), color=COLOURS[0], linewidth=1.3, label="sent, not answered")
    asked = [sample.at_s for sample in run.samples]
    axis.plot(
        asked, [one.waiting for one in run.samples], color=COLOURS[1], linewidth=1.0, label="waiting in the engine"
    )


def _latencies(axis: Any, run: ArmRun) -> None:  # noqa: ANN401 - as above
    windows = [one for one in run.figures.windows if one.latency.p50 is not None]
    times = [one.at_s + WINDOW_S / 2 for one in windows]
    for name, colour in zip(("p50", "p95", "p99"), COLOURS, strict=False):
        values = [getattr(one.latency, name) for one in windows]
        axis.plot(times, values, color=colour, linewidth=1.2, marker=".", markersize=4, label=name)


def _replicas(axis: Any, run: ArmRun) -> None:  # noqa: ANN401 - as above
    for number, name in enumerate(_names(run)):
        pools = [(sample.told_at_s, pool) for sample in run.samples for pool in sample.pools if pool.name == name]
        times, colour = [at_s for at_s, _ in pools], COLOURS[number % len(COLOURS)]
        axis.step(
            times,
            # Lines of two pools would hide each other.
            [len(pool.replicas) + 0.03 * number for _, pool in pools],
            where="post",
            color=colour,
            linewidth=1.5,
            label=f"pool {name}: answering",
        )
        axis.step(times, [pool.target for _, pool in pools], where="post", color=colour, linewidth=0.9, linestyle=":")
    for hot in run.figures.hot:
        colour = COLOURS[_names(run).index(hot.pool) % len(COLOURS)]
        axis.axvline(hot.decided_s, color=colour, linewidth=0.8, linestyle="--")
    axis.plot([], [], color=GREY, linewidth=0.9, linestyle=":", label="to have")
    axis.plot([], [], color=GREY, linewidth=0.8, linestyle="--", label="decided: hot")


def _pairs(axis: Any, run: ArmRun) -> None:  # noqa: ANN401 - as above
    for number, name in enumerate(_names(run)):
        pools = [(sample.told_at_s, pool) for sample in run.samples for pool in sample.pools if pool.name == name]
        times, colour = [at_s for at_s, _ in pools], COLOURS[number % len(COLOURS)]
        axis.plot(times, [pool.pairs_per_s for _, pool in pools], color=colour, linewidth=1.2, label=f"pool {name}")
        able = [pool.capacity_pairs_per_s * len(pool.replicas) for _, pool in pools]
        axis.step(times, able, where="post", color=colour, linewidth=0.8, linestyle=":")
    axis.plot([], [], color=GREY, linewidth=0.8, linestyle=":", label="quota of its replicas")


def _names(run: ArmRun) -> list[str]:
    return sorted({pool.name for sample in run.samples for pool in sample.pools})
