"""The picture of the pressure scenario: a column per arm, and over time KV usage with level, preemptions, requests, latencies."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from cluster.precision.measures import NORMAL, Measure
from cluster.routing.latency_class import LatencyClass
from loadtests.pressure_figures import ArmRun
from loadtests.pressure_workload import CLASSES, Phases

LEVEL_COLOURS: Final = {
    Measure.CONSERVATIVE_SAMPLING: "#fdf6da",
    Measure.FP8_KV: "#fbdda6",
    Measure.TWIN: "#f6b48f",
    Measure.SHED: "#e58a8a",
}
"""By the last measure of a level; level 0 is white."""
CLASS_COLOURS: Final = {
    LatencyClass.INTERACTIVE: "#1f77b4",
    LatencyClass.STANDARD: "#2ca02c",
    LatencyClass.BATCH: "#7f7f7f",
}
_LEGEND: Final[dict[str, Any]] = {
    "fontsize": 8,
    "loc": "upper left",
    "bbox_to_anchor": (1.01, 1.0),
    "frameon": False,
}
BLUE, ORANGE, RED, GREY = "#1f77b4", "#e07b00", "#c0392b", "#888888"


def plot(path: Path, title: str, runs: Sequence[ArmRun], model: str, phases: Phases) -> None:
    """Write the picture (PNG) of one round. Raises `ValueError` for no runs."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    if not runs:
        raise ValueError("there is nothing to draw")
    figure, axes = plt.subplots(
        4,
        len(runs),
        figsize=(4.6 * len(runs) + 1.2, 9.6),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    figure.suptitle(title, fontsize=12)
    for column, run in enumerate(runs):
        rows = [axes[row][column] for row in range(4)]
        figures = run.figures
        rows[0].set_title(
            f"{run.arm}: {figures.goodput:.0%} in target, {figures.tokens_per_s:.0f} tokens/s in the surge", fontsize=10
        )
        _usage(rows[0], run, model)
        _preemptions(rows[1], run)
        _requests(rows[2], run)
        _latencies(rows[3], run)
        for axis in rows:
            axis.axvline(phases.warm_up_s, color=GREY, linewidth=0.6, linestyle=":")
            axis.axvline(phases.warm_up_s + phases.surge_s, color=GREY, linewidth=0.6, linestyle=":")
            axis.margins(x=0)
        rows[3].set_xlabel("seconds since the run began")
        if column == len(runs) - 1:
            for axis in rows:
                handles, labels = axis.get_legend_handles_labels()
                axis.legend(handles, labels, **_LEGEND)
    labels = (
        "share of the KV cache in use",
        "preemptions so far",
        "requests",
        "latency of each request, s",
    )
    for row, label in enumerate(labels):
        axes[row][0].set_ylabel(label)
    _level_legend(axes[0][-1], runs, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _usage(axis: Any, run: ArmRun, model: str) -> None:  # noqa: ANN401 - matplotlib's axes have no useful type here
    times = [sample.at_s for sample in run.samples]
    seen = [sample.models[model] for sample in run.samples]
    _shade(axis, times, [one.level_name for one in seen])
    axis.plot(times, [one.kv_usage for one in seen], color=BLUE, linewidth=1.2, label=f"KV usage, {model}")
    for name in run.samples[0].models:
        if name != model:
            usage = [sample.models[name].kv_usage for sample in run.samples]
            axis.plot(times, usage, color=ORANGE, linewidth=0.9, alpha=0.8, label=f"KV usage, {name}")
    precisions = [one.kv_precision for one in seen]
    changes = [at for at, (was, now) in enumerate(pairwise(precisions), start=1) if was != now]
    for at in changes:
        axis.axvline(times[at], color=RED, linewidth=1.0, linestyle="--")
        axis.annotate(
            precisions[at], (times[at], 1.04), fontsize=7, color=RED, ha="left", va="bottom", annotation_clip=False
        )
    axis.set_ylim(0, 1.15)


def _shade(axis: Any, times: Sequence[float], levels: Sequence[str]) -> None:  # noqa: ANN401 - as above
    """The background says which level is in force."""
    began = 0
    for at in range(1, len(levels) + 1):
        if at == len(levels) or levels[at] != levels[began]:
            if levels[began] != NORMAL:
                colour = LEVEL_COLOURS[Measure(levels[began])]
                axis.axvspan(times[began], times[min(at, len(times) - 1)], color=colour, linewidth=0, zorder=0)
            began = at


def _level_legend(axis: Any, runs: Sequence[ArmRun], model: str) -> None:  # noqa: ANN401 - as above
    """Names of the levels that were reached, below the lines of the first row."""
    from matplotlib.patches import Patch

    reached = {sample.models[model].level_name for run in runs for sample in run.samples}
    handles, labels = axis.get_legend_handles_labels()
    for measure, colour in LEVEL_COLOURS.items():
        if measure in reached:
            handles.append(Patch(facecolor=colour, edgecolor=GREY, linewidth=0.4))
            labels.append(f"level: {measure}")
    axis.legend(handles, labels, **_LEGEND)


def _preemptions(axis: Any, run: ArmRun) -> None:  # noqa: ANN401 - as above
    times = [sample.at_s for sample in run.samples]
    for field, colour, label in (
        ("preemptions", BLUE, "for lack of blocks"),
        ("forced_preemptions", RED, "by changes of precision"),
    ):
        totals = [sum(int(getattr(model, field)) for model in sample.models.values()) for sample in run.samples]
        axis.step(
            times, [total - totals[0] for total in totals], where="post", color=colour, linewidth=1.3, label=label
        )


def _requests(axis: Any, run: ArmRun) -> None:  # noqa: ANN401 - as above
    times = [sample.at_s for sample in run.samples]
    for label, colour, field in (("running", BLUE, "running"), ("waiting", ORANGE, "waiting")):
        totals = [sum(int(getattr(model, field)) for model in sample.models.values()) for sample in run.samples]
        if field == "waiting":
            totals = [
                total + sum(model.queued for model in sample.models.values())
                for total, sample in zip(totals, run.samples, strict=True)
            ]
        axis.plot(times, totals, color=colour, linewidth=1.2, label=label)


def _latencies(axis: Any, run: ArmRun) -> None:  # noqa: ANN401 - as above
    """Every request where it came: filled if it kept its target, hollow if not, a cross at the top if it has no whole answer."""
    ceiling = max((one.total_s for one in run.outcomes if one.code is None), default=1.0)
    for name, colour in CLASS_COLOURS.items():
        terms = CLASSES[name]
        of_class = [one for one in run.outcomes if one.latency_class is name]
        kept = [one for one in of_class if one.in_target]
        late = [one for one in of_class if one.code is None and not one.in_target]
        failed = [one for one in of_class if one.code is not None]
        begins = "" if terms.ttft_s is None else f", begun in {terms.ttft_s:g} s"
        label = f"{name.value}: {terms.total_s:g} s{begins}"
        axis.axhline(terms.total_s, color=colour, linewidth=0.8, linestyle="--")
        axis.scatter([one.at_s for one in kept], [one.total_s for one in kept], s=14, color=colour, label=label)
        axis.scatter(
            [one.at_s for one in late],
            [one.total_s for one in late],
            s=16,
            facecolors="none",
            edgecolors=colour,
            linewidths=1,
        )
        axis.scatter(
            [one.at_s for one in failed],
            [max(ceiling, 64.0)] * len(failed),
            s=18,
            marker="x",
            color=colour,
            linewidths=1,
        )
    axis.scatter([], [], s=16, facecolors="none", edgecolors=GREY, linewidths=1, label="hollow: later than its target")
    axis.scatter([], [], s=18, marker="x", color=GREY, label="cross: refused or cut off")
    axis.set_ylim(bottom=0)
