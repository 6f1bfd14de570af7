"""`python -m loadtests.speed`: how much faster one model of a running cluster is than another."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from deployments.head.state import state_directory
from loadtests.bench_report import comparison_table, report_json
from loadtests.driver import LoadPlan
from loadtests.running_cluster import ClusterError, RunningCluster
from loadtests.series import Arm, Series, UnfairError, comparisons_of, shape_for
from loadtests.show import console
from loadtests.targets import TargetError, parse_target

application = typer.Typer(add_completion=False, help=__doc__)


@application.command()
def speed(  # noqa: PLR0913 - each is an option of the command line
    *,
    baseline: Annotated[str, typer.Option(help="Model to compare with.")] = "dense",
    model: Annotated[str, typer.Option(help="Model whose speed is asked.")] = "mini",
    url: Annotated[str, typer.Option(help="A cluster that runs.")] = "http://127.0.0.1:8000",
    state_dir: Annotated[Path | None, typer.Option(help="The cluster's state directory.")] = None,
    pairs: Annotated[int, typer.Option(min=1, max=100, help="Alternating pairs per number of streams.")] = 5,
    streams: Annotated[str, typer.Option(help="Numbers of streams, separated by commas.")] = "16,1",
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 64,
    seconds: Annotated[float, typer.Option(min=1, help="Aim at runs of about this length.")] = 10.0,
    seed: Annotated[int | None, typer.Option(help="Series of prompts; default: a new one.")] = None,
    key: Annotated[str | None, typer.Option(envvar="POINTSMAN_API_KEY", help="API key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Compare two models in alternating pairs: same prompts, same lengths, one model at a time."""
    screen = console()
    used_seed = seed if seed is not None else int(time.time()) % 10_000_000 * 100_000
    try:
        shapes = [shape_for(int(text), max_tokens, seconds) for text in streams.split(",")]
        target = parse_target(url, key)
        cluster = RunningCluster(target.root, Path(), state_dir or state_directory(None), key)
        for name in (baseline, model):
            cluster.wait_for(name, timeout_s=5.0)
        arms = [
            Arm(name, LoadPlan(target, name, max_tokens=max_tokens, ignore_eos=True), cluster.pids)
            for name in (baseline, model)
        ]
        series = Series(arms[0], arms[1], screen.print)
        found = comparisons_of(series, shapes, pairs, used_seed)
    except (TargetError, ClusterError, UnfairError, ValueError) as error:
        screen.print(str(error), style="red")
        raise typer.Exit(2) from None
    screen.print(comparison_table(f"{model} over {baseline}", baseline, model, found))
    if as_json:
        settings: dict[str, object] = {
            "baseline": baseline,
            "model": model,
            "max_tokens": max_tokens,
            "shapes": [asdict(shape) for shape in shapes],
            "seed": used_seed,
            "warnings": series.warnings,
        }
        sys.stdout.write(report_json(settings, series.pairs, found) + "\n")


if __name__ == "__main__":
    application()
