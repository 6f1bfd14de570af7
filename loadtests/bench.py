"""`python -m loadtests.bench` (`make bench`): the cluster against the bare vLLM server, in alternating pairs."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cluster.config.mistakes import ConfigError
from deployments.head.state import state_directory
from deployments.models.errors import ModelError
from deployments.models.sources import resolve
from loadtests.bare_server import BareServer, ServerError, parse_binding
from loadtests.bench_report import comparison_table, plot_pairs, report_json
from loadtests.configured import vllm_model
from loadtests.driver import LoadPlan
from loadtests.machine import cpu_model
from loadtests.running_cluster import ClusterError, RunningCluster
from loadtests.series import Arm, Series, UnfairError, comparisons_of, shape_for
from loadtests.show import console
from loadtests.targets import TargetError, parse_target

application = typer.Typer(add_completion=False, help=__doc__)


@application.command()
def bench(  # noqa: PLR0913 - each is an option of the command line
    *,
    config: Annotated[Path, typer.Option(help="Config of the cluster.")] = Path("infra/clusters/local.yaml"),
    model: Annotated[str, typer.Option(help="Model to compare.")] = "dense",
    url: Annotated[str | None, typer.Option(help="A cluster that runs; default: the config's address.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="The cluster's state directory.")] = None,
    pairs: Annotated[int, typer.Option(min=1, max=100, help="Alternating pairs per number of streams.")] = 5,
    streams: Annotated[str, typer.Option(help="Numbers of streams, separated by commas.")] = "16,1",
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 64,
    seconds: Annotated[float, typer.Option(min=1, help="Aim at runs of about this length.")] = 10.0,
    layout: Annotated[str, typer.Option(help="Processes of the bare server: in-core or processes.")] = "in-core",
    cores: Annotated[str, typer.Option(help="Cores of the bare server's threads, or `nobind`.")] = "0",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the bare server's engine.")] = 1,
    client_nice: Annotated[int, typer.Option(min=0, max=19, help="Niceness of this client.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Series of prompts; default: a new one.")] = None,
    control: Annotated[bool, typer.Option("--control", help="Two bare servers: what the harness itself adds.")] = False,
    key: Annotated[str | None, typer.Option(envvar="POINTSMAN_API_KEY", help="API key of the cluster.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for results.")] = Path("out/bench"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compare tokens/s, TTFT and smoothness of streams. Starts what is missing and stops what it started."""
    screen = console()
    signal.signal(signal.SIGTERM, _stop)
    name = "control" if control else "cluster"
    # Two benches of one cluster must not send the same prompts: the second would find them in the prefix cache.
    used_seed = seed if seed is not None else int(time.time()) % 10_000_000 * 100_000
    try:
        whole, chosen = vllm_model(config, model)
        folder = resolve(chosen.source or "", None, lambda text, done: screen.print(f"{text} {done:.0%}"))
        binding = parse_binding(f"{layout}:{cores}:{threads}")
        shapes = [shape_for(int(text), max_tokens, seconds) for text in streams.split(",")]
        where = url or f"http://{whole.ingress.host}:{whole.ingress.port}"
        target = parse_target(where, key)
        state = state_dir or state_directory(whole.ray.state_dir)
        with ExitStack() as stack:
            measured: RunningCluster | BareServer
            if control:
                measured = stack.enter_context(BareServer(model, chosen, folder, binding, out / "control_server.log"))
            else:
                measured = stack.enter_context(RunningCluster(target.root, config, state, key, screen.print))
                measured.wait_for(model)
            screen.print(f"bare vLLM server: {binding}")
            bare = stack.enter_context(BareServer(model, chosen, folder, binding, out / "bare_server.log"))
            # Only now: what was started above inherits niceness.
            os.setpriority(os.PRIO_PROCESS, 0, client_nice)
            series = Series(
                Arm("bare", _plan(bare.url, None, model, max_tokens), bare.pids),
                Arm(name, _plan(measured.url, key, model, max_tokens), measured.pids),
                screen.print,
            )
            found = comparisons_of(series, shapes, pairs, used_seed)
    except (ConfigError, ModelError, TargetError, ClusterError, ServerError, UnfairError, ValueError) as error:
        screen.print(str(error), style="red")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        screen.print("stopped; everything that was started here is down")
        raise typer.Exit(130) from None
    settings: dict[str, object] = {
        "model": model,
        "max_tokens": max_tokens,
        "shapes": [asdict(shape) for shape in shapes],
        "bare_binding": asdict(binding),
        "client_nice": client_nice,
        "seed": used_seed,
        "control": control,
        "cluster_models": sorted(whole.models),
        "traces": whole.telemetry.traces,
        "cpus": os.cpu_count(),
        "cpu_model": cpu_model(),
        "resting_cores": series.resting_cores(),
        "warnings": series.warnings,
    }
    out.mkdir(parents=True, exist_ok=True)
    text = report_json(settings, series.pairs, found)
    (out / "bench.json").write_text(text)
    title = f"{model}: {name} over bare vLLM server"
    plot_pairs(out / "bench.png", title, series.pairs, found)
    screen.print(comparison_table(title, "bare", name, found))
    resting = ", ".join(f"{arm} {cores:.2f}" for arm, cores in series.resting_cores().items())
    screen.print(f"CPU cores taken at rest: {resting}")
    screen.print(f"all figures: {out / 'bench.json'}, picture: {out / 'bench.png'}")
    if as_json:
        sys.stdout.write(text + "\n")


def _plan(url: str, key: str | None, model: str, max_tokens: int) -> LoadPlan:
    return LoadPlan(parse_target(url, key), model, max_tokens=max_tokens, ignore_eos=True)


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    application()
