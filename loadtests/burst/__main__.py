"""`python -m loadtests.burst`: what replicas by heat are worth when traffic concentrates on one kind of text and then moves."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer

from cluster.config.mistakes import ConfigError
from loadtests.burst.arms import SHAPE, Terms, order
from loadtests.burst.figures import ArmRun
from loadtests.burst.load import Phases, requests_of
from loadtests.burst.plot import plot
from loadtests.burst.report import arms_table, hot_table, ratios_table, report_json, sentence, title
from loadtests.burst.run import Capacity, Scene, Stage, measure_capacity, run_arm, stage
from loadtests.burst.watch import WatchError
from loadtests.machine import cpu_model
from loadtests.running_cluster import ClusterError
from loadtests.show import console
from loadtests.targets import TargetError

application = typer.Typer(add_completion=False, help=__doc__)

QUICK: Final = Phases(before_s=5.0, code_s=12.0, stories_s=12.0, after_s=11.0)
PROBE_S: Final = 15.0
"""For which more is asked for than can be served, before the first round."""


@application.command()
def burst(  # noqa: PLR0913 - each is an option of the command line
    *,
    config: Annotated[Path, typer.Option(help="Config with a model whose experts live in pools.")] = Path(
        "infra/clusters/pools.yaml"
    ),
    model: Annotated[str, typer.Option(help="That model.")] = "sparse",
    simulated: Annotated[
        bool, typer.Option("--simulated", help="The simulated engine, pools and channel as ever.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Rounds of both arms.")] = 3,
    times: Annotated[
        float,
        typer.Option(min=0.1, max=5, help="Load of a surge, as a number of times what one replica per pool serves."),
    ] = 1.4,
    quota: Annotated[float, typer.Option(min=1, help="Pairs of token and expert a second of a replica.")] = 1200.0,
    high: Annotated[float, typer.Option(min=0.05, max=1, help="Share of it above which a pool gains a replica.")] = 0.5,
    max_tokens: Annotated[int, typer.Option(min=1, max=512, help="Tokens of an answer.")] = 8,
    before_s: Annotated[float, typer.Option(min=0, max=600, help="Seconds of calm at first.")] = 20.0,
    code_s: Annotated[float, typer.Option(min=1, max=600, help="Seconds of the surge of code.")] = 45.0,
    stories_s: Annotated[float, typer.Option(min=1, max=600, help="Seconds of the surge of stories.")] = 45.0,
    after_s: Annotated[float, typer.Option(min=0, max=600, help="Seconds of calm at the end.")] = 40.0,
    seed: Annotated[int, typer.Option(min=0, help="Series of requests; each round has its own.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="One short round, to see that it works.")] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="Where clusters answer; default: the config's.")
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="State directory of the clusters; default: one that is removed.")
    ] = None,
    key: Annotated[str | None, typer.Option(envvar="POINTSMAN_API_KEY", help="API key.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for results.")] = Path("out"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """One replica of each pool against replicas by heat, under the same requests and quota. Each arm starts a cluster of its own."""
    screen = console()
    signal.signal(signal.SIGTERM, _stop)
    phases, rounds = (QUICK, 1) if quick else (Phases(before_s, code_s, stories_s, after_s), rounds)
    terms = Terms(quota, high, simulated, SHAPE, port)
    runs: list[ArmRun] = []
    try:
        scene = Scene(
            config.read_text(encoding="utf-8"), model, terms, phases, max_tokens, key, state_dir, screen.print
        )
        capacity: Capacity | None = None
        for number in range(rounds):
            for arm in order(number):
                with stage(scene, arm) as on:
                    # The first arm of the first round has one replica of each pool.
                    capacity = capacity or _measured(on, seed, times)
                    run = run_arm(on, number, requests_of(seed + number, capacity.rate(times), phases, max_tokens))
                runs.append(run)
                screen.print(_line(run))
            settings = {
                **_settings(scene, capacity),
                "times": times,
                "seed": seed,
                "rounds": number + 1,
                "quick": quick,
            }
            _write(out, settings, runs, phases)
    except (ConfigError, TargetError, ClusterError, WatchError, OSError, ValueError) as error:
        screen.print(str(error), style="red")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        screen.print("stopped; what was started here is down")
        raise typer.Exit(130) from None
    screen.print(arms_table(runs))
    screen.print(hot_table(runs))
    screen.print(ratios_table(runs))
    screen.print(f"all figures: {out / 'burst.json'}, picture: {out / 'burst.png'}")
    screen.print(sentence(runs))
    if as_json:
        sys.stdout.write((out / "burst.json").read_text(encoding="utf-8"))


def _measured(on: Stage, seed: int, times: float) -> Capacity:
    """What a replica of each pool can serve. Raises `ClusterError`."""
    capacity = measure_capacity(on, PROBE_S, seed)
    on.scene.say(
        f"one replica of each pool serves {capacity.rows_per_s:.1f} tokens/s (prompts too; its quota alone would allow "
        f"{capacity.by_quota:.1f}), the busiest pool at {capacity.quota_used:.0%} of its quota, the engine waiting for pools "
        f"{capacity.waiting_share:.0%} of the time; a surge asks for {times:g} times that, "
        f"{capacity.rate(times):.2f} requests of {capacity.rows:.0f} tokens a second"
    )
    return capacity


def _line(run: ArmRun) -> str:
    figures = run.figures
    p95 = figures.latency["surges"].p95
    told = "-" if p95 is None else f"{p95:.1f} s"
    return (
        f"round {run.round + 1}, {run.arm}: {figures.completed} of {figures.offered} answered, p95 in the surges {told}, "
        f"{figures.rows_per_s:.1f} tokens/s in them, at most {figures.most_in_flight} requests in flight"
    )


def _settings(scene: Scene, capacity: Capacity | None) -> dict[str, object]:
    return {
        "model": scene.model,
        "terms": asdict(scene.terms),
        "phases": asdict(scene.phases),
        "max_tokens": scene.max_tokens,
        "capacity": None if capacity is None else asdict(capacity),
        "cpus": os.cpu_count(),
        "cpu_model": cpu_model(),
    }


def _write(out: Path, settings: dict[str, object], runs: list[ArmRun], phases: Phases) -> None:
    """The figures of the rounds so far: what was measured is kept, however the command ends."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "burst.json").write_text(report_json(settings, runs) + "\n", encoding="utf-8")
    last = [run for run in runs if run.round == runs[-1].round]
    plot(out / "burst.png", title(runs, f"burst, round {runs[-1].round + 1}"), last, phases)


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    application()
