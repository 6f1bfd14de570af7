"""`python -m loadtests.bindings`: which binding of the bare vLLM server is the fastest on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.table import Table

from cluster.config.mistakes import ConfigError
from cluster.config.model import ModelConfig
from deployments.models.errors import ModelError
from deployments.models.sources import resolve
from loadtests.bare_server import BareServer, Binding, ServerError, parse_binding
from loadtests.configured import vllm_model
from loadtests.driver import LoadPlan, drive
from loadtests.quiet import wait_until_quiet
from loadtests.series import shape_for
from loadtests.show import console, milliseconds, write_json
from loadtests.stats import median
from loadtests.targets import parse_target

_CANDIDATES: Final = "in-core:0:1,in-core:nobind:1,in-core:0-1:2,processes:0:1,processes:1:1,processes:0-1:2"

application = typer.Typer(add_completion=False, help=__doc__)


@dataclass(frozen=True, slots=True)
class Tried:
    """Medians of the runs of one binding at one number of streams."""

    binding: Binding
    streams: int
    runs: int
    tokens_per_s: float
    ttft_p50_s: float


def try_binding(
    name: str,
    model: ModelConfig,
    folder: Path,
    binding: Binding,
    streams: list[int],
    runs: int,
    say: Callable[[str], None],
) -> list[Tried]:
    """Start a server with a binding and measure it. Raises `ServerError`."""
    tried = []
    with BareServer(name, model, folder, binding, Path("out/bindings/server.log")) as server:
        target = parse_target(server.url)
        for count in streams:
            shape = shape_for(count, max_tokens=64, seconds=8.0)
            speeds, firsts = [], []
            for number in range(runs):
                wait_until_quiet((), patience_s=20.0, say=say)
                plan = LoadPlan(
                    target, name, count, shape.requests, warm_up=count, seed=1000 * count + number, ignore_eos=True
                )
                summary = asyncio.run(drive(plan))
                if summary.errors or summary.ttft.p50 is None:
                    raise ServerError(f"the server with {binding} failed: {summary.errors}")
                speeds.append(summary.tokens_per_s)
                firsts.append(summary.ttft.p50)
            tried.append(Tried(binding, count, runs, median(speeds), median(firsts)))
            say(f"{binding}, {count} streams: {tried[-1].tokens_per_s:.1f} tokens/s")
    return tried


@application.command()
def bindings(
    *,
    config: Annotated[Path, typer.Option(help="Config of the cluster.")] = Path("infra/clusters/local.yaml"),
    model: Annotated[str, typer.Option(help="Model to measure.")] = "dense",
    candidates: Annotated[
        str, typer.Option(help="Bindings as LAYOUT:CORES:THREADS, separated by commas.")
    ] = _CANDIDATES,
    streams: Annotated[str, typer.Option(help="Numbers of streams, separated by commas.")] = "16,1",
    runs: Annotated[int, typer.Option(min=1, max=50, help="Runs of about 8 s of each.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure each binding on a server of its own, and hand the best one to `python -m loadtests.bench`."""
    screen = console()
    try:
        _, chosen = vllm_model(config, model)
        folder = resolve(chosen.source or "", None, lambda text, done: screen.print(f"{text} {done:.0%}"))
        tried = [
            one
            for text in candidates.split(",")
            for one in try_binding(
                model, chosen, folder, parse_binding(text), [int(n) for n in streams.split(",")], runs, screen.print
            )
        ]
    except (ConfigError, ModelError, ServerError, ValueError) as error:
        screen.print(str(error), style="red")
        raise typer.Exit(2) from None
    if as_json:
        write_json([asdict(one) for one in tried])
        return
    table = Table(title=f"bare vLLM server, {model}", title_justify="left")
    for title in ("binding", "streams", "tokens/s", "TTFT p50"):
        table.add_column(title, justify="left" if title == "binding" else "right")
    for one in sorted(tried, key=lambda one: (-one.streams, -one.tokens_per_s)):
        table.add_row(str(one.binding), str(one.streams), f"{one.tokens_per_s:.1f}", milliseconds(one.ttft_p50_s))
    screen.print(table)


if __name__ == "__main__":
    application()
