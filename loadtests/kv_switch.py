"""`python -m loadtests.kv_switch`: what a change of KV precision costs the requests that live through it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from cluster.config.mistakes import ConfigError
from cluster.config.model import ModelConfig
from deployments.engines.kv_precision import KvPrecisionError
from deployments.engines.protocol import EngineStartError
from deployments.models.errors import ModelError
from deployments.models.sources import resolve
from loadtests.bench_report import interval_text
from loadtests.configured import vllm_model
from loadtests.kv_switching import (
    Round,
    Score,
    SwitchError,
    greedy_answers,
    growth,
    in_flight_prompt,
    one_round,
    running,
    score,
)
from loadtests.machine import cpu_model
from loadtests.show import console, milliseconds, percent
from loadtests.stats import Interval, median, median_interval

application = typer.Typer(add_completion=False, help=__doc__)

DOWN_AT, UP_AT = 0.25, 0.6
"""Shares of an answer that each stream has sent when the precision goes down, and up again."""
GREEDY_PROMPTS, GREEDY_TOKENS = 8, 32


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured."""

    rounds: int
    streams: int
    max_tokens: int
    switches: int
    seed: int


@dataclass(frozen=True, slots=True)
class Gaps:
    """Changes in one direction."""

    changes: int
    pause_median_s: float
    pause_max_s: float
    recomputed_tokens: float
    """Tokens computed again, median."""
    stream_gap_median_s: float
    """The longest gap of any stream at a change, median of the changes."""
    stream_gap_max_s: float
    blocks_before: int
    blocks_after: int


@dataclass(frozen=True, slots=True)
class Answers:
    """What answers are worth to the model in its own precision."""

    requests: int
    tokens: int
    mean_logprob: float
    greedy_share: float


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything that was measured."""

    own: str
    down: Gaps
    up: Gaps
    quiet_gap_median_s: float
    quiet_gap_max_s: float
    requests: int
    tokens: int
    """Made by these requests, which is what was asked for, and sent once each."""
    same_until_change: int
    """Requests that had sent before the first change what they sent in an engine that never changed."""
    same_to_the_end: int
    greedy_equal: int
    switched: Answers
    never: Answers
    logprob_difference: Interval
    """Mean log probability of a request's tokens, above that of the same request where nothing changed; median of requests."""
    growth_bytes: int
    growth_switches: int
    growth_requests: int


async def measure(folder: Path, model: ModelConfig, plan: Plan, say: Callable[[str], None]) -> Measured:
    """Two engines one after the other: one that changes and one that never does. Raises what they raise."""
    prompts = [[in_flight_prompt(plan.seed + number, n) for n in range(plan.streams)] for number in range(plan.rounds)]
    fresh = [in_flight_prompt(plan.seed - 1, n) for n in range(GREEDY_PROMPTS)]
    at = {int(plan.max_tokens * DOWN_AT): "fp8", int(plan.max_tokens * UP_AT): "auto"}
    changed = []
    async with running(folder, model) as engine:
        before = await greedy_answers(engine, fresh, GREEDY_TOKENS)
        for number, of_round in enumerate(prompts):
            found = await one_round(engine, of_round, plan.max_tokens, at)
            changed.append(found)
            told = ", ".join(
                f"to {c.switch.after} in {milliseconds(c.switch.pause_s)}, longest gap {max(c.gaps_s):.2f} s"
                for c in found.changes
            )
            say(f"round {number + 1} of {plan.rounds}: {told}")
        equal = sum(
            one == other for one, other in zip(before, await greedy_answers(engine, fresh, GREEDY_TOKENS), strict=True)
        )
        say(f"{equal} of {GREEDY_PROMPTS} fresh answers are what they were; now {plan.switches} changes in a row")
        grown, served = await growth(engine, fresh, plan.switches)
    never = []
    async with running(folder, model) as engine:
        for number, of_round in enumerate(prompts):
            never.append(await one_round(engine, of_round, plan.max_tokens, {}))
            say(f"round {number + 1} of {plan.rounds} in an engine that never changes")
        scores = [
            [await score(engine, one) for found in rounds for one in found.streams] for rounds in (changed, never)
        ]
    return _measured(changed, never, scores, equal, (grown, plan.switches, served))


def _measured(
    changed: list[Round], never: list[Round], scores: list[list[Score]], equal: int, grown: tuple[int, int, int]
) -> Measured:
    streams = [one for found in changed for one in found.streams]
    plain = [one for found in never for one in found.streams]
    sent = [ids for found in changed for ids in found.changes[0].sent]
    tokens = sum(len(one.ids) for one in streams)
    quiet = [found.quiet_gap_s for found in [*changed, *never]]
    switched, unswitched = scores
    return Measured(
        own=changed[0].changes[0].switch.before,
        down=_gaps(changed, 0),
        up=_gaps(changed, 1),
        quiet_gap_median_s=median(quiet),
        quiet_gap_max_s=max(quiet),
        requests=len(streams),
        tokens=tokens,
        same_until_change=sum(tuple(two.ids[: len(ids)]) == ids for ids, two in zip(sent, plain, strict=True)),
        same_to_the_end=sum(one.ids == two.ids for one, two in zip(streams, plain, strict=True)),
        greedy_equal=equal,
        switched=_answers(switched, tokens),
        never=_answers(unswitched, tokens),
        logprob_difference=median_interval(
            [one.mean_logprob - two.mean_logprob for one, two in zip(switched, unswitched, strict=True)]
        ),
        growth_bytes=grown[0],
        growth_switches=grown[1],
        growth_requests=grown[2],
    )


def _gaps(rounds: Sequence[Round], which: int) -> Gaps:
    changes = [found.changes[which] for found in rounds]
    longest = [max(change.gaps_s) for change in changes]
    pauses = [change.switch.pause_s for change in changes]
    return Gaps(
        changes=len(changes),
        pause_median_s=median(pauses),
        pause_max_s=max(pauses),
        recomputed_tokens=median([float(change.switch.tokens) for change in changes]),
        stream_gap_median_s=median(longest),
        stream_gap_max_s=max(longest),
        blocks_before=changes[0].switch.blocks_before,
        blocks_after=changes[0].switch.blocks_after,
    )


def _answers(scores: Sequence[Score], tokens: int) -> Answers:
    count = len(scores)
    # All answers have the same number of tokens, so the mean of means is the mean.
    return Answers(
        count,
        tokens,
        sum(one.mean_logprob for one in scores) / count,
        sum(one.greedy_share for one in scores) / count,
    )


def tables(found: Measured) -> tuple[Table, Table]:
    """What the changes cost, and what became of the requests."""
    cost = Table(title="changes of the KV precision under load", title_justify="left")
    for name in ("measure", f"{found.own} to fp8", f"fp8 to {found.own}"):
        cost.add_column(name, justify="left" if name == "measure" else "right")
    both = (found.down, found.up)
    for name, cells in (
        ("changes", [str(g.changes) for g in both]),
        ("pause of the engine, median", [milliseconds(g.pause_median_s) for g in both]),
        ("pause of the engine, longest", [milliseconds(g.pause_max_s) for g in both]),
        ("tokens computed again, median", [f"{g.recomputed_tokens:.0f}" for g in both]),
        ("longest gap of a stream at a change, median", [f"{g.stream_gap_median_s:.2f} s" for g in both]),
        ("longest gap of a stream at a change, longest", [f"{g.stream_gap_max_s:.2f} s" for g in both]),
        ("longest gap of a stream without one, median", [f"{found.quiet_gap_median_s:.2f} s"] * 2),
        ("longest gap of a stream without one, longest", [f"{found.quiet_gap_max_s:.2f} s"] * 2),
        ("KV blocks", [f"{g.blocks_before} -> {g.blocks_after}" for g in both]),
    ):
        cost.add_row(name, *cells)
    kept = Table(title="the requests", title_justify="left", caption="median of requests [95 % bootstrap interval]")
    for name in ("measure", "lived through two changes", "nothing changed"):
        kept.add_column(name, justify="left" if name == "measure" else "right")
    kept.add_row("requests (tokens made, each sent once)", f"{found.requests} ({found.tokens})", str(found.requests))
    kept.add_row("same tokens until the first change", f"{found.same_until_change} of {found.requests}", "")
    kept.add_row("same tokens to the end", f"{found.same_to_the_end} of {found.requests}", "")
    kept.add_row("mean log probability of a token", *(f"{a.mean_logprob:.4f}" for a in (found.switched, found.never)))
    kept.add_row("tokens that are the greedy choice", *(percent(a.greedy_share) for a in (found.switched, found.never)))
    kept.add_row("log probability above, same request", interval_text(found.logprob_difference, digits=4), "")
    kept.add_row("fresh answers equal after the return", f"{found.greedy_equal} of {GREEDY_PROMPTS}", "")
    kept.add_row(
        f"engine's memory after {found.growth_switches} changes",
        f"{found.growth_bytes / 2**20:+.1f} MiB",
        "",
    )
    return cost, kept


@application.command()
def kv_switch(  # noqa: PLR0913 - each is an option of the command line
    *,
    config: Annotated[Path, typer.Option(help="Config that the model is taken from.")] = Path(
        "infra/clusters/local.yaml"
    ),
    model: Annotated[str, typer.Option(help="Model to measure.")] = "dense",
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Changes down and up again.")] = 10,
    streams: Annotated[int, typer.Option(min=1, max=64, help="Requests in flight.")] = 16,
    max_tokens: Annotated[int, typer.Option(min=16, max=1024, help="Tokens of each answer.")] = 160,
    switches: Annotated[int, typer.Option(min=2, max=2000, help="Changes over which memory is watched.")] = 200,
    seed: Annotated[int, typer.Option(help="Series of prompts.")] = 1,
    out: Annotated[Path, typer.Option(help="File for the figures.")] = Path("out/kv_switch.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Change the KV precision of a real engine under load, and see what becomes of the requests."""
    screen = console()
    plan = Plan(rounds, streams, max_tokens, switches, seed)
    try:
        _, chosen = vllm_model(config, model)
        folder = resolve(chosen.source or "", None, lambda text, done: screen.print(f"{text} {done:.0%}"))
        found = asyncio.run(measure(folder, chosen, plan, screen.print))
    except (ConfigError, ModelError, EngineStartError, KvPrecisionError, SwitchError, ValueError) as error:
        screen.print(str(error), style="red")
        raise typer.Exit(2) from None
    settings: dict[str, Any] = {"model": model, **asdict(plan), "cpus": os.cpu_count(), "cpu_model": cpu_model()}
    text = json.dumps({"settings": settings, "measured": asdict(found)}, indent=2)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + "\n", encoding="utf-8")
    for table in tables(found):
        screen.print(table)
    screen.print(f"all figures: {out}")
    if as_json:
        sys.stdout.write(text + "\n")


if __name__ == "__main__":
    application()
