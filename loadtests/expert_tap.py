"""`python -m loadtests.expert_tap`: what it costs to count which experts tokens go to, switched on and off in one engine."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from cluster.config.mistakes import ConfigError
from cluster.config.model import ModelConfig
from deployments.engines.protocol import Endpoint, EngineRequest, EngineStartError
from deployments.engines.vllm_engine import VllmEngine
from deployments.models.errors import ModelError
from deployments.models.sources import resolve
from loadtests.bench_report import interval_text
from loadtests.configured import vllm_model
from loadtests.kv_switching import NAME, SwitchError, running
from loadtests.machine import cpu_model
from loadtests.prompts import story_prompt
from loadtests.show import console
from loadtests.stats import Interval, median, median_interval, ratios

application = typer.Typer(add_completion=False, help=__doc__)


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of a decoding step with counting over those without, pair by pair."""

    streams: int
    step_s: float
    """Without counting, median."""
    ratio: Interval


async def step_s(engine: VllmEngine, streams: int, tokens: int, seed: int) -> float:
    """Seconds of a step in which all streams decode. Raises `SwitchError`."""
    arrivals: list[list[float]] = [[] for _ in range(streams)]

    async def one(number: int) -> None:
        body: Any = {
            "model": NAME,
            "messages": [{"role": "user", "content": story_prompt(seed, number)}],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        request = EngineRequest(f"tap-{seed}-{number}", Endpoint.CHAT, body)
        reply = await engine.run(request, lambda _: arrivals[number].append(time.perf_counter()))
        if reply.status != 200:
            raise SwitchError(f"a request failed with status {reply.status}")

    await asyncio.gather(*[one(number) for number in range(streams)])
    # From the first token of the last stream to the last token of the first one, all of them decode.
    began, ended = max(at[1] for at in arrivals), min(at[-1] for at in arrivals)
    steps = sum(began < at <= ended for at in arrivals[0])
    if steps < 2:
        raise SwitchError("the streams did not decode together; ask for more tokens")
    return (ended - began) / steps


async def measure(
    folder: Path, model: ModelConfig, pairs: int, tokens: int, seed: int, say: Callable[[str], None]
) -> list[Measured]:
    """One engine, one stream and as many as it takes at once. Raises what the engine raises."""
    found = []
    async with running(folder, model) as engine:
        for streams in (1, min(16, model.engine.max_num_seqs)):
            await step_s(engine, streams, tokens, seed)
            counted: list[float] = []
            bare: list[float] = []
            for pair in range(pairs):
                # Which of the two comes first alternates, so that a drift of the machine favours neither.
                for counting in (True, False) if pair % 2 else (False, True):
                    await engine.count_experts(counting=counting)
                    took = await step_s(engine, streams, tokens, seed + 1 + 2 * pair + counting)
                    (counted if counting else bare).append(took)
                say(f"{streams} streams, pair {pair + 1} of {pairs}: {counted[-1] / bare[-1]:.4f}")
            await engine.count_experts(counting=True)
            found.append(Measured(streams, median(bare), median_interval(ratios(counted, bare))))
    return found


def table(found: list[Measured]) -> Table:
    """Steps with counting over steps without."""
    shown = Table(title="counting experts, seconds of a step over those without", title_justify="left")
    for name in ("streams", "step without", "ratio"):
        shown.add_column(name, justify="right")
    for one in found:
        shown.add_row(str(one.streams), f"{one.step_s * 1000:.1f} ms", interval_text(one.ratio, digits=4))
    return shown


@application.command()
def expert_tap(
    *,
    config: Annotated[Path, typer.Option(help="Config that the model is taken from.")] = Path(
        "infra/clusters/local.yaml"
    ),
    model: Annotated[str, typer.Option(help="Sparse model to measure.")] = "sparse",
    pairs: Annotated[int, typer.Option(min=1, max=200, help="Alternating pairs.")] = 10,
    max_tokens: Annotated[int, typer.Option(min=16, max=1024, help="Tokens of each answer.")] = 96,
    seed: Annotated[int, typer.Option(help="Series of prompts.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Seconds of an engine's step while it counts the tokens of each expert, over those while it does not."""
    screen = console()
    try:
        _, chosen = vllm_model(config, model)
        folder = resolve(chosen.source or "", None, lambda text, done: screen.print(f"{text} {done:.0%}"))
        found = asyncio.run(measure(folder, chosen, pairs, max_tokens, seed, screen.print))
    except (ConfigError, ModelError, EngineStartError, SwitchError, ValueError) as error:
        screen.print(str(error), style="red")
        raise typer.Exit(2) from None
    screen.print(table(found))
    if as_json:
        settings = {"model": model, "pairs": pairs, "max_tokens": max_tokens, "seed": seed}
        machine = {"cpus": os.cpu_count(), "cpu_model": cpu_model()}
        figures = {"settings": settings | machine, "measured": [asdict(one) for one in found]}
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    application()
