"""`python -m loadtests.expert_pools`: a model as a trunk with two pools against the same model in one engine, on this machine.

Speed, in alternating pairs; what it would cost if experts took no time at all; what the answers differ by; memory of pools.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from transformers import AutoTokenizer

from cluster.config.mistakes import ConfigError
from cluster.config.model import ModelConfig
from cluster.experts.pools import Holding, split_evenly
from deployments.engines.protocol import EngineStartError
from deployments.engines.vllm_engine import VllmEngine
from deployments.experts.weights import Checkpoint, CheckpointError
from deployments.models.errors import ModelError
from deployments.models.kv_quality import Quality, compare, summarise
from deployments.models.sources import resolve
from loadtests.bench_report import interval_text
from loadtests.configured import vllm_model
from loadtests.expert_pools_arms import Asked, Dtype, MeasureError, answer, pools, running, tokens_per_s, trunk_files
from loadtests.expert_pools_floor import floor_s
from loadtests.machine import cpu_model
from loadtests.pairs import orders
from loadtests.prompts import story_prompt
from loadtests.show import console
from loadtests.stats import Interval, median, median_interval, ratios

application = typer.Typer(add_completion=False, help=__doc__)

FLOOR_STEPS = 200
SEED = 1
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second at one number of streams."""

    streams: int
    engine_tokens_per_s: float
    trunk_tokens_per_s: float
    ratio: Interval
    """Trunk and pools over the engine, pair by pair."""
    floor_s: float
    """Seconds of a step that pools cost even if experts took no time."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the answers differ by, on the tokens of the same texts."""

    dtype: str
    trunk: Quality
    """Trunk and pools against the engine."""
    itself: Quality
    """The engine against itself with the texts in other batches: what rounding alone makes of it."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one pool process, bytes."""

    share: float
    """Of the experts that it holds."""
    weight_bytes: int
    overhead_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how much of it."""

    checkpoint: Path
    model: ModelConfig
    holdings: Sequence[Holding]
    """Of the two pools."""
    prompts: Callable[[int, int], list[list[int]]]
    """Tokens of as many prompts as the second number says, of the series that the first one names."""
    folder: Path
    """For sockets and files."""
    pairs: int
    streams: Sequence[int]
    tokens: int
    """Of each answer."""
    texts: int
    threads: int
    """Of the engine."""
    trunk_threads: int

    def in_format(self, dtype: Dtype, threads: int) -> ModelConfig:
        """The model in a number format, its threads on any cores."""
        engine = self.model.engine.model_copy(update={"dtype": dtype, "prefix_caching": False})
        replicas = self.model.replicas.model_copy(update={"omp_threads": threads, "cpu_cores": None})
        return self.model.model_copy(update={"engine": engine, "replicas": replicas})


@asynccontextmanager
async def arms(plan: Plan, dtype: Dtype) -> AsyncIterator[tuple[VllmEngine, VllmEngine]]:
    """The engine, and the trunk with its pools; one of them is to work at a time. Raises what engines raise."""
    whole, parted = plan.in_format(dtype, plan.threads), plan.in_format(dtype, plan.trunk_threads)
    with pools(plan.checkpoint, plan.holdings, dtype, plan.folder) as told:
        files = trunk_files(plan.folder, plan.holdings, [str(pool["address"]) for pool in told])
        async with running(plan.checkpoint, whole, None) as engine, running(plan.checkpoint, parted, files) as trunk:
            yield engine, trunk


async def speeds(plan: Plan, say: Callable[[str], None]) -> list[Speed]:
    """At each number of streams. Raises what engines raise."""
    found = []
    async with arms(plan, "bfloat16") as (engine, trunk):
        for count in plan.streams:
            rates: dict[bool, list[float]] = {True: [], False: []}
            for pair, trunk_first in enumerate([False, *orders(plan.pairs)]):
                asked = [Asked(prompt, plan.tokens) for prompt in plan.prompts(pair, count)]
                for is_trunk in (trunk_first, not trunk_first):
                    rate = await tokens_per_s(trunk if is_trunk else engine, asked)
                    # The first pair is a warm-up.
                    if pair:
                        rates[is_trunk].append(rate)
                if pair:
                    say(f"{count} streams, pair {pair} of {plan.pairs}: {rates[True][-1] / rates[False][-1]:.3f}")
            ratio = median_interval(ratios(rates[True], rates[False]))
            found.append((count, median(rates[False]), median(rates[True]), ratio))
    # With the engines gone: they would share the processor with it.
    floors = {count: floor_s(plan.checkpoint, plan.holdings, plan.folder, count, FLOOR_STEPS) for count in plan.streams}
    return [Speed(*one, floors[one[0]]) for one in found]


async def agreement(plan: Plan, dtype: Dtype) -> Agreement:
    """Reads the texts with both, and with the engine once more one by one. Raises what engines raise."""
    asked = [Asked(text, 1, tell=True) for text in plan.prompts(-1, plan.texts)]
    async with arms(plan, dtype) as (engine, trunk):
        own = await asyncio.gather(*(answer(engine, one) for one in asked))
        others = await asyncio.gather(*(answer(trunk, one) for one in asked))
        again = [await answer(engine, one) for one in asked]
    return Agreement(
        dtype,
        summarise([compare(a, b, same_answer=True) for a, b in zip(own, others, strict=True)]),
        summarise([compare(a, b, same_answer=True) for a, b in zip(own, again, strict=True)]),
    )


def memory(plan: Plan) -> list[Memory]:
    """Of a pool with a quarter and one with half of the experts."""
    opened, found = Checkpoint(plan.checkpoint), []
    for parts in (4, 2):
        holds = split_evenly(opened.layers, opened.experts, parts)[:1]
        with pools(plan.checkpoint, holds, "bfloat16", plan.folder) as (told,):
            found.append(Memory(1 / parts, told["weight_bytes"], told["overhead_bytes"]))
    return found


async def measure(plan: Plan, say: Callable[[str], None]) -> tuple[list[Speed], list[Agreement], list[Memory]]:
    """Everything. Raises what engines raise, and `MeasureError`."""
    formats: tuple[Dtype, ...] = ("bfloat16", "float32") if plan.texts else ()
    return await speeds(plan, say), [await agreement(plan, dtype) for dtype in formats], memory(plan)


def table(speed: Sequence[Speed], agreed: Sequence[Agreement], held: Sequence[Memory]) -> Table:
    """Everything that was measured."""
    shown = Table(title="a trunk with two pools against one engine", title_justify="left")
    shown.add_column("measure")
    shown.add_column("figure", justify="right")
    for one in speed:
        name = f"{one.streams} stream{'s' if one.streams != 1 else ''}"
        shown.add_row(f"{name}: tokens/s, engine", f"{one.engine_tokens_per_s:.1f}")
        shown.add_row(f"{name}: tokens/s, trunk", f"{one.trunk_tokens_per_s:.1f}")
        shown.add_row(f"{name}: ratio", interval_text(one.ratio))
        shown.add_row(f"{name}: step with experts that take no time", f"{one.floor_s * 1000:.1f} ms")
    for two in agreed:
        for name, quality in (("trunk", two.trunk), ("engine in other batches", two.itself)):
            shown.add_row(f"{two.dtype}: agreement, {name}", f"{quality.agreement.value:.2%}")
            shown.add_row(f"{two.dtype}: mean KL, {name}", f"{quality.kl.value:.2e}")
    for three in held:
        figures = f"{three.weight_bytes / MIB:.0f} MiB and {three.overhead_bytes / MIB:.0f} MiB beside"
        shown.add_row(f"pool with {three.share:.0%} of the experts", figures)
    return shown


@application.command()
def expert_pools(
    *,
    config: Annotated[Path, typer.Option(help="Config that the model is taken from.")] = Path(
        "infra/clusters/local.yaml"
    ),
    model: Annotated[str, typer.Option(help="Sparse model to measure.")] = "sparse",
    pairs: Annotated[int, typer.Option(min=1, max=200, help="Alternating pairs.")] = 10,
    streams: Annotated[str, typer.Option(help="Numbers of streams, with commas between them.")] = "16,1",
    max_tokens: Annotated[int, typer.Option(min=8, max=1024, help="Tokens of each answer.")] = 64,
    texts: Annotated[int, typer.Option(min=0, max=2000, help="Texts that are read by both; 0: none.")] = 200,
    threads: Annotated[
        tuple[int, int],
        typer.Option(min=1, help="Threads of the engine, and of the trunk, which shares cores with pools."),
    ] = (2, 1),
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures here, too, as JSON.")] = None,
) -> None:
    """Speed, differences and memory of expert pools on one machine. Pools have a thread each, engine and trunk as many as asked for."""
    screen = console()
    try:
        _, chosen = vllm_model(config, model)
        folder = resolve(chosen.source or "", None, lambda text, done: screen.print(f"{text} {done:.0%}"))
        opened = Checkpoint(folder)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        with tempfile.TemporaryDirectory() as name:
            plan = Plan(
                folder,
                chosen,
                split_evenly(opened.layers, opened.experts, 2),
                lambda series, count: [tokenizer.encode(story_prompt(SEED + series, index)) for index in range(count)],
                Path(name),
                pairs,
                [int(one) for one in streams.split(",")],
                max_tokens,
                texts,
                *threads,
            )
            speed, agreed, held = asyncio.run(measure(plan, screen.print))
    except (ConfigError, ModelError, CheckpointError, EngineStartError, MeasureError, ValueError) as error:
        screen.print(str(error), style="red")
        raise typer.Exit(2) from None
    screen.print(table(speed, agreed, held))
    settings = {"model": model, "pairs": pairs, "max_tokens": max_tokens, "texts": texts, "threads": threads}
    machine = {"cpus": os.cpu_count(), "cpu_model": cpu_model()}
    figures = {
        "settings": settings | machine,
        "speed": [asdict(one) for one in speed],
        "agreement": [asdict(one) for one in agreed],
        "memory": [asdict(one) for one in held],
    }
    text = json.dumps(figures, indent=2) + "\n"
    if json_path is not None:
        json_path.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    application()
