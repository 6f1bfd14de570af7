"""The picture of the simulation: a column per case, and over time steps, unevenness, requests under way, latencies."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from loadtests.expert_scale.report import FLOOR, POLICY, REPLICAS, STATIC, WHOLE, Found
from loadtests.expert_scale.run import Run
from loadtests.expert_scale.scene import WARM_UP_S, Scene

COLOURS: Final = {STATIC: "#c0392b", WHOLE: "#888888", REPLICAS: "#e07b00", POLICY: "#1f77b4", FLOOR: "#2ca02c"}
_LATENCY_PART_S: Final = 5.0
"""Requests that end within so long are one point of the p95."""


def plot(path: Path, scene: Scene, found: Found) -> None:
    """Write the picture (PNG). Raises `ValueError` for no cases."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    if not found:
        raise ValueError("there is nothing to draw")
    size = (4.6 * len(found) + 1.2, 9.6)
    figure, axes = plt.subplots(4, len(found), figsize=size, sharex=True, squeeze=False, layout="constrained")
    labels = (
        "step of a trunk, s",
        "largest over mean load in a layer",
        "requests under way",
        "p95 of requests by end, s",
    )
    for column, (case, runs) in enumerate(found.items()):
        drawn = [axes[row][column] for row in range(4)]
        drawn[0].set_title(case.name, fontsize=10)
        for run in runs:
            _draw(drawn, run)
        for axis, label in zip(drawn, labels, strict=True):
            _phases(axis, scene)
            axis.set_ylim(bottom=0)
            axis.set_xlim(0, scene.seconds + 10)
            if column == 0:
                axis.set_ylabel(label)
        drawn[3].set_xlabel("seconds since the run began")
    axes[0][-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _draw(axes: list[Any], run: Run) -> None:
    times = [second.at_s for second in run.seconds]
    series = (
        [second.step_s if second.running else np.nan for second in run.seconds],
        [second.uneven if second.running else np.nan for second in run.seconds],
        [second.running + second.waiting for second in run.seconds],
    )
    for axis, values in zip(axes, series, strict=False):
        axis.plot(times, values, color=COLOURS[run.arm], linewidth=1.1, label=run.arm)
    part = np.floor(run.ended_s / _LATENCY_PART_S)
    parts = np.unique(part)
    p95 = [float(np.quantile(run.latency_s[part == one], 0.95)) for one in parts]
    axes[3].plot((parts + 0.5) * _LATENCY_PART_S, p95, color=COLOURS[run.arm], linewidth=1.1)


def _phases(axis: Any, scene: Scene) -> None:  # noqa: ANN401 - matplotlib's axes have no useful type here
    began = 0.0
    for phase in scene.phases:
        if began:
            axis.axvline(began, color="#888888", linewidth=0.6, linestyle=":")
        began += phase.seconds
    axis.axvspan(0, WARM_UP_S, color="#f2f2f2", linewidth=0, zorder=0)
