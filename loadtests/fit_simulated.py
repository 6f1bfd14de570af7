"""`python -m loadtests.fit_simulated`: measure a real model, and fit the simulated engine to it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Final

import typer
from rich.table import Table

from deployments.engines.simulated.core import Bounds, Costs
from loadtests.driver import LoadPlan, drive
from loadtests.fitting import Check, DecodePoint, PrefillPoint, check, fit
from loadtests.prompts import long_prompt
from loadtests.quiet import wait_until_quiet
from loadtests.records import RunSummary
from loadtests.show import console, milliseconds, write_json
from loadtests.stats import median
from loadtests.targets import Target, TargetError, parse_target

_WORDS: Final = (64, 128, 256, 512, 900)
_PROMPTS_PER_LENGTH: Final = 4
_SEEDS_PER_ROUND: Final = 10_000
_PATIENCE_S: Final = 20.0

application = typer.Typer(add_completion=False, help=__doc__)


class MeasureError(RuntimeError):
    """A run failed, so there is nothing to fit."""


def measure_decode(target: Target, model: str, streams: int, max_tokens: int, seed: int) -> DecodePoint:
    """A closed loop of that many streams. Raises `MeasureError`."""
    requests = max(6, streams * 2)
    plan = LoadPlan(
        target, model, streams, requests, max_tokens=max_tokens, warm_up=streams, seed=seed, ignore_eos=True
    )
    summary = _run(plan)
    return DecodePoint(
        streams=streams,
        requests=requests,
        prompt_tokens=round(summary.prompt_tokens / requests),
        max_tokens=max_tokens,
        step_s=summary.gap.p50 or 0.0,
        tokens_per_s=summary.tokens_per_s,
        ttft_p50_s=summary.ttft.p50 or 0.0,
    )


def measure_prefill(target: Target, model: str, words: int, seed: int) -> PrefillPoint:
    """Prompts of about that many words, one at a time. Raises `MeasureError`."""
    plan = LoadPlan(
        target,
        model,
        streams=1,
        requests=_PROMPTS_PER_LENGTH,
        max_tokens=2,
        warm_up=1,
        seed=seed,
        ignore_eos=True,
        prompt=functools.partial(_words, words),
    )
    summary = _run(plan)
    return PrefillPoint(round(summary.prompt_tokens / _PROMPTS_PER_LENGTH), summary.ttft.p50 or 0.0)


@dataclass(frozen=True, slots=True)
class Measuring:
    """What to measure how often. Rounds go through all points in turn, so that a busy minute hits each of them once."""

    target: Target
    model: str
    levels: tuple[int, ...]
    max_tokens: int
    rounds: int
    seed: int


def measure(plan: Measuring, say: Callable[[str], None]) -> tuple[list[DecodePoint], list[PrefillPoint]]:
    """All points, each the median of its rounds, measured in quiet moments. Raises `MeasureError`."""
    decode: dict[int, list[DecodePoint]] = {}
    prefill: dict[int, list[PrefillPoint]] = {}
    for number in range(plan.rounds):
        seed = plan.seed + number * _SEEDS_PER_ROUND
        for streams in plan.levels:
            wait_until_quiet((), _PATIENCE_S, say)
            point = measure_decode(plan.target, plan.model, streams, plan.max_tokens, seed + streams)
            say(f"{streams} streams: step {milliseconds(point.step_s)}, {point.tokens_per_s:.1f} tokens/s")
            decode.setdefault(streams, []).append(point)
        for words in _WORDS:
            alone = measure_prefill(plan.target, plan.model, words, seed + words)
            say(f"prompt of {alone.prompt_tokens} tokens: TTFT {milliseconds(alone.ttft_s)}")
            prefill.setdefault(words, []).append(alone)
    return [median_decode(points) for points in decode.values()], [
        PrefillPoint(round(median([p.prompt_tokens for p in points])), median([p.ttft_s for p in points]))
        for points in prefill.values()
    ]


def median_decode(points: Sequence[DecodePoint]) -> DecodePoint:
    """Medians of points at the same number of streams."""
    return replace(
        points[0],
        step_s=median([point.step_s for point in points]),
        tokens_per_s=median([point.tokens_per_s for point in points]),
        ttft_p50_s=median([point.ttft_p50_s for point in points]),
    )


def checks_table(checks: list[Check]) -> Table:
    """Measured beside simulated."""
    table = Table(title="measured / simulated", title_justify="left")
    for name in ("streams", "step", "tokens/s", "error", "TTFT p50"):
        table.add_column(name, justify="right")
    for found in checks:
        point = found.point
        table.add_row(
            str(point.streams),
            f"{milliseconds(point.step_s)} / {milliseconds(found.step_s)}",
            f"{point.tokens_per_s:.1f} / {found.tokens_per_s:.1f}",
            f"{found.error:+.1%}",
            f"{milliseconds(point.ttft_p50_s)} / {milliseconds(found.ttft_p50_s)}",
        )
    return table


@application.command()
def fit_simulated(  # noqa: PLR0913 - each is an option of the command line
    *,
    url: Annotated[str, typer.Option(help="A server with the real model.")] = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="The real model.")] = "dense",
    levels: Annotated[str, typer.Option(help="Numbers of streams, separated by commas.")] = "1,2,4,8,16,32",
    max_tokens: Annotated[int, typer.Option(min=8, help="Tokens of each answer.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, max=50, help="Measurements of each point; medians are fitted.")] = 3,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Sequences that the real engine runs at once.")] = 32,
    seed: Annotated[
        int, typer.Option(help="Series of prompts; take another one to measure the same server again.")
    ] = 0,
    key: Annotated[str | None, typer.Option(envvar="POINTSMAN_API_KEY", help="API key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Print the parameters for a model's `engine.simulated`, and how far off the simulated engine then is."""
    screen = console()
    try:
        target = parse_target(url, key)
        counts = tuple(int(text) for text in levels.split(","))
        decode, prefill = measure(Measuring(target, model, counts, max_tokens, rounds, seed), screen.print)
        costs = fit(decode, prefill)
    except (TargetError, MeasureError, ValueError) as error:
        screen.print(str(error), style="red")
        raise typer.Exit(2) from None
    # A pool that nothing here fills: what is checked is the time of steps, not pressure.
    bounds = Bounds(4096, 128, max_num_seqs, 2048)
    checks = check(costs, bounds, decode)
    screen.print(checks_table(checks))
    screen.print(_yaml(costs), highlight=False)
    worst = max(abs(found.error) for found in checks)
    screen.print(f"largest error of tokens/s: {worst:.1%}")
    if as_json:
        write_json(
            {
                "costs": asdict(costs),
                "worst_tokens_per_s_error": worst,
                "checks": [asdict(found) for found in checks],
                "prefill": [asdict(point) for point in prefill],
            }
        )


def _yaml(costs: Costs) -> str:
    return (
        "simulated:\n"
        f"  prefill_tokens_per_s: {costs.prefill_tokens_per_s:.0f}\n"
        f"  decode_step_base_s: {costs.decode_step_base_s:.5f}\n"
        f"  decode_step_per_seq_s: {costs.decode_step_per_seq_s:.6f}"
    )


def _words(words: int, seed: int, index: int) -> str:
    return long_prompt(seed, index, words)


def _run(plan: LoadPlan) -> RunSummary:
    summary = asyncio.run(drive(plan))
    if summary.errors or summary.ttft.p50 is None:
        raise MeasureError(f"a run with {plan.streams} streams failed: {summary.errors}")
    if summary.simulated:
        raise MeasureError(f"{', '.join(summary.answered_by)} answers: measure a real model to fit to")
    return summary


if __name__ == "__main__":
    application()
