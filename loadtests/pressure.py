"""`python -m loadtests.pressure`: what the precision ladder is worth when a small KV pool is asked for three times what it holds."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cluster.config.cluster import ClusterConfig
from cluster.config.engine import SimulatedConfig
from cluster.config.load import parse_config
from cluster.config.mistakes import ConfigError
from deployments.head.state import state_directory
from loadtests.machine import cpu_model, engines_of_nobody
from loadtests.pressure_arms import Scene, apply, order, run_arm, timeline_of, until_at_rest, with_timeline
from loadtests.pressure_figures import ArmRun
from loadtests.pressure_plot import plot
from loadtests.pressure_report import (
    arms_table,
    ratios_of,
    ratios_table,
    report_json,
    timeline_table,
    typical_round,
)
from loadtests.pressure_samples import Observer, SampleError
from loadtests.pressure_speed import speed_of
from loadtests.pressure_workload import (
    CLASSES,
    Phases,
    Turn,
    mean_shape,
    rate_for,
    requests_for,
    workload,
)
from loadtests.quiet import wait_until_quiet
from loadtests.running_cluster import ClusterError, RunningCluster
from loadtests.show import console
from loadtests.targets import Target, TargetError, parse_target

application = typer.Typer(add_completion=False, help=__doc__)

QUICK = Phases(warm_up_s=1.0, surge_s=5.0, tail_s=1.0, ramp_s=1.0)


@application.command()
def pressure(  # noqa: PLR0913 - each is an option of the command line
    *,
    config: Annotated[Path, typer.Option(help="Config of the cluster, its ladder in full.")] = Path(
        "infra/clusters/pressure.yaml"
    ),
    model: Annotated[str, typer.Option(help="Model that gets the load.")] = "dense",
    url: Annotated[str | None, typer.Option(help="A cluster that runs; default: the config's address.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="The cluster's state directory.")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Rounds of all three arms.")] = 3,
    times: Annotated[
        float, typer.Option(min=0.1, max=20, help="KV memory asked for, as a number of times the pool.")
    ] = 3.0,
    seed: Annotated[int, typer.Option(min=0, help="Series of requests; each round has its own.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="One short round, to see that it works.")] = False,
    key: Annotated[str | None, typer.Option(envvar="POINTSMAN_API_KEY", help="API key of the cluster.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for results.")] = Path("out"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Three arms under the same load: ladder off, KV only, full ladder. Starts the cluster if none runs, and stops what it started."""
    screen = console()
    signal.signal(signal.SIGTERM, _stop)
    phases, rounds = (QUICK, 1) if quick else (Phases(), rounds)
    try:
        base = config.read_text(encoding="utf-8")
        whole = parse_config(base, str(config))
        target = parse_target(url or f"http://{whole.ingress.host}:{whole.ingress.port}", key)
        state = state_dir or state_directory(whole.ray.state_dir)
        with RunningCluster(target.root, config, state, key, screen.print) as cluster:
            cluster.wait_for(model)
            for seen in engines_of_nobody(cluster.pids()):
                screen.print(f"warning: an engine of somebody else runs: pid {seen.pid}, {seen.title[:60]!r}")
            began_at = time.time()
            scene = asyncio.run(_scene(target, model, state, base, phases, screen.print))
            speed = asyncio.run(speed_of(target, model))
            rate, settings = _load(scene, whole, speed, times)
            settings |= {"rounds": rounds, "seed": seed, "quick": quick, "precision": _ladder(whole, model)}
            runs: list[ArmRun] = []
            try:
                for number in range(rounds):
                    turns = workload(seed + number, rate, phases)
                    runs.extend(_round(scene, number, turns, patience_s=0.0 if quick else 10.0))
                    runs = with_timeline(runs, timeline_of(state, began_at))
                    _write(out, settings, runs)
            finally:
                if not cluster.started_here:
                    apply(scene, base)
    except (ConfigError, TargetError, ClusterError, SampleError, OSError, ValueError) as error:
        screen.print(str(error), style="red")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        screen.print("stopped; what was started here is down")
        raise typer.Exit(130) from None
    ratios, shown = ratios_of(runs), typical_round(runs)
    text = report_json(settings, runs, ratios)
    plot(
        out / "pressure.png",
        f"{model} at {times:g} times its KV pool, round {shown[0].round + 1}",
        shown,
        model,
        phases,
    )
    screen.print(timeline_table(shown))
    screen.print(arms_table(runs))
    screen.print(ratios_table(ratios))
    screen.print(f"all figures: {out / 'pressure.json'}, picture: {out / 'pressure.png'}")
    if as_json:
        sys.stdout.write(text + "\n")


def _write(out: Path, settings: dict[str, object], runs: list[ArmRun]) -> None:
    """The figures of the rounds so far: what was measured is kept, however the command ends."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "pressure.json").write_text(report_json(settings, runs, ratios_of(runs)) + "\n", encoding="utf-8")


async def _scene(
    target: Target, model: str, state_dir: Path, base: str, phases: Phases, say: Callable[[str], None]
) -> Scene:
    """The cluster at rest, and the pool as it is then. Raises `ClusterError`."""
    async with Observer(target) as observer:
        sample = await until_at_rest(observer, 60.0)
    if sample is None or model not in sample.models:
        raise ClusterError(f"{model!r} has no KV cache at rest; see `pointsman precision`")
    return Scene(target, model, state_dir, base, phases, sample.models[model].kv_tokens, say)


def _load(scene: Scene, config: ClusterConfig, speed: SimulatedConfig, times: float) -> tuple[float, dict[str, object]]:
    """Requests per second in the surge, and what they follow from."""
    simulated = config.models[scene.model].engine.simulated or SimulatedConfig()
    block_tokens, shape = simulated.kv_block_tokens, mean_shape()
    at_once = requests_for(times, scene.pool_tokens, block_tokens, shape)
    rate = rate_for(at_once, shape, speed)
    costs = speed.model_dump(include={"prefill_tokens_per_s", "decode_step_base_s", "decode_step_per_seq_s"})
    scene.say("at rest: " + ", ".join(f"{name} {value:.4g}" for name, value in costs.items()))
    scene.say(
        f"the pool holds {scene.pool_tokens} tokens; {times:g} times that are {at_once:.1f} requests at once of "
        f"{shape.prompt:.0f} + {shape.completion:.0f} tokens, which is {rate:.2f} requests a second in the surge"
    )
    return rate, {
        "model": scene.model,
        "pool_tokens": scene.pool_tokens,
        "times": times,
        "requests_at_once": at_once,
        "rate_per_s": rate,
        "speed": costs,
        "mean_request": asdict(shape),
        "phases": asdict(scene.phases),
        "targets": {name.value: asdict(terms) for name, terms in CLASSES.items()},
        "cpus": os.cpu_count(),
        "cpu_model": cpu_model(),
    }


def _ladder(config: ClusterConfig, model: str) -> dict[str, object]:
    return {
        **config.precision.model_dump(mode="json"),
        model: config.models[model].precision.model_dump(mode="json"),
        "admission": config.admission.model_dump(mode="json"),
    }


def _round(scene: Scene, number: int, turns: tuple[Turn, ...], patience_s: float) -> list[ArmRun]:
    """All arms once, in the order of the round; waits up to `patience_s` for a quiet machine before each."""

    async def one(arm_number: int) -> ArmRun:
        async with Observer(scene.target) as observer:
            return await run_arm(scene, observer, arms[arm_number], number, turns)

    arms, runs = order(number), []
    for at in range(len(arms)):
        if patience_s:
            # The machine must be idle but for the cluster, which is at rest.
            wait_until_quiet((), patience_s, lambda message: scene.say(f"warning: {message}"))
        run = asyncio.run(one(at))
        found = run.figures
        scene.say(
            f"round {number + 1}, {run.arm}: {found.in_target} of {found.offered} in target, {found.completed} completed, "
            f"{found.tokens_per_s:.0f} tokens/s in the surge, {found.preemptions} preemptions, levels {found.levels}"
        )
        runs.append(run)
    return runs


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    application()
