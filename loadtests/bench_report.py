"""What a comparison of two arms showed: a table, a JSON file and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from loadtests.pairs import Comparison, Pair
from loadtests.stats import Interval, ratios


def interval_text(interval: Interval, scale: float = 1.0, unit: str = "", digits: int = 3) -> str:
    """A median with its interval."""
    low, middle, high = (value * scale for value in (interval.low, interval.median, interval.high))
    return f"{middle:.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}]"


def comparison_table(title: str, baseline: str, measured: str, comparisons: Sequence[Comparison]) -> Table:
    """One column per number of streams."""
    table = Table(title=title, title_justify="left", caption="median of the pairs [95 % bootstrap interval]")
    table.add_column("measure")
    for found in comparisons:
        table.add_column(f"{found.streams} stream{'s' if found.streams != 1 else ''}", justify="right")
    rows = [
        (f"tokens/s, {baseline}", [f"{c.baseline_tokens_per_s:.1f}" for c in comparisons]),
        (f"tokens/s, {measured}", [f"{c.measured_tokens_per_s:.1f}" for c in comparisons]),
        ("ratio of tokens/s", [interval_text(c.tokens_per_s) for c in comparisons]),
        (f"TTFT p50, {baseline}", [f"{c.baseline_ttft_p50_s * 1000:.1f} ms" for c in comparisons]),
        (f"TTFT p50, {measured}", [f"{c.measured_ttft_p50_s * 1000:.1f} ms" for c in comparisons]),
        ("ratio of TTFT p50", [interval_text(c.ttft_p50) for c in comparisons]),
        ("TTFT p50 above", [interval_text(c.ttft_p50_difference_s, 1000, " ms", 1) for c in comparisons]),
        ("ratio of median gap", [interval_text(c.gap_p50) for c in comparisons]),
        (
            f"arrivals of at most 2 tokens, {baseline} / {measured}",
            [f"{c.baseline_few_token_share:.1%} / {c.measured_few_token_share:.1%}" for c in comparisons],
        ),
        ("pairs", [str(c.pairs) for c in comparisons]),
    ]
    for name, cells in rows:
        table.add_row(name, *cells)
    return table


def report_json(settings: dict[str, object], pairs: Sequence[Pair], comparisons: Sequence[Comparison]) -> str:
    """Everything that was set and measured."""
    return json.dumps(
        {
            "settings": settings,
            "comparisons": [asdict(found) for found in comparisons],
            "pairs": [asdict(pair) for pair in pairs],
        },
        indent=2,
    )


def plot_pairs(path: Path, title: str, pairs: Sequence[Pair], comparisons: Sequence[Comparison]) -> None:
    """A picture (PNG) of every pair's ratios, with median and interval, by number of streams."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    figure.suptitle(title)
    for axis, name in zip(axes, ("tokens/s", "TTFT p50"), strict=True):
        for place, found in enumerate(comparisons):
            of_these = [pair for pair in pairs if pair.streams == found.streams]
            if name == "tokens/s":
                values = ratios(
                    [p.measured.tokens_per_s for p in of_these], [p.baseline.tokens_per_s for p in of_these]
                )
                interval = found.tokens_per_s
            else:
                values = ratios(
                    [p.measured.ttft.p50 or 0.0 for p in of_these], [p.baseline.ttft.p50 or 0.0 for p in of_these]
                )
                interval = found.ttft_p50
            axis.scatter([place] * len(values), values, alpha=0.5, label=None)
            axis.errorbar(
                place + 0.15,
                interval.median,
                yerr=[[interval.median - interval.low], [interval.high - interval.median]],
                fmt="o",
                capsize=4,
                color="black",
            )
        axis.axhline(1.0, linewidth=0.8, linestyle="--", color="grey")
        axis.set_xticks(range(len(comparisons)), [f"{found.streams} streams" for found in comparisons])
        axis.set_xlim(-0.5, len(comparisons) - 0.5)
        axis.set_ylabel(f"ratio of {name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
