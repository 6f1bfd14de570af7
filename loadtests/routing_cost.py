"""`python -m loadtests.routing_cost`: what `model: auto` costs against naming the same model, requests alternating in one cluster."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.progress import Progress

from loadtests.prompts import story_prompt
from loadtests.show import console, write_json
from loadtests.stats import Interval, median, median_interval, ratios

application = typer.Typer(add_completion=False, help=__doc__)


@dataclass(frozen=True, slots=True)
class Timed:
    """One answer."""

    model: str
    """Who answered."""
    tokens: int
    """Of the completion."""
    seconds: float
    """Until it was whole."""
    first_s: float
    """Until its first text."""


@dataclass(frozen=True, slots=True)
class Cost:
    """`auto` over the named model, medians over pairs of requests with the same prompt, sent one after the other."""

    pairs: int
    left_out: int
    """Pairs whose two answers came from different models, or differ in length (a count)."""
    tokens_per_s: Interval
    """Ratio of the tokens a second of each answer."""
    first_s: Interval
    """Ratio of the times to the first text."""
    named_tokens_per_s: float
    auto_tokens_per_s: float


def cost_of(pairs: Sequence[tuple[Timed, Timed]]) -> Cost:
    """The figures of pairs (named, auto). Raises `ValueError` if none can be compared."""
    alike = [(a, b) for a, b in pairs if a.model == b.model and a.tokens == b.tokens > 0]
    if not alike:
        raise ValueError(
            "no pair was answered by the same model in the same length: name the model that `auto` chooses"
        )
    named = [a.tokens / a.seconds for a, _ in alike]
    auto = [b.tokens / b.seconds for _, b in alike]
    return Cost(
        pairs=len(alike),
        left_out=len(pairs) - len(alike),
        tokens_per_s=median_interval(ratios(auto, named)),
        first_s=median_interval(ratios([b.first_s for _, b in alike], [a.first_s for a, _ in alike])),
        named_tokens_per_s=median(named),
        auto_tokens_per_s=median(auto),
    )


async def ask(client: httpx.AsyncClient, model: str, prompt: str, max_tokens: int) -> Timed:
    """One streamed answer. Raises `httpx.HTTPError`, and `ValueError` for a stream that ended with an error."""
    loop = asyncio.get_running_loop()
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began, first_s, tokens, answered_by = loop.time(), None, 0, ""
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        reply.raise_for_status()
        answered_by = reply.headers.get("x-pointsman-model", "")
        async for line in reply.aiter_lines():
            if first_s is None and '"content":"' in line and '"content":""' not in line:
                first_s = loop.time() - began
            if line.startswith('data: {"error"'):
                raise ValueError(f"the cluster broke off an answer: {line[:200]}")
            if '"usage":{' in line:
                tokens = int(json.loads(line[6:])["usage"]["completion_tokens"])
    seconds = loop.time() - began
    return Timed(answered_by, tokens, seconds, seconds if first_s is None else first_s)


async def run(
    client: httpx.AsyncClient, model: str, pairs: int, streams: int, max_tokens: int, progress: Progress
) -> list[tuple[Timed, Timed]]:
    """`pairs` pairs (named, auto) over `streams` streams. Each asks both ways in turn; who is first changes from pair to pair."""
    task = progress.add_task("pairs", total=pairs)
    numbers = iter(range(pairs))
    done: list[tuple[Timed, Timed]] = []

    async def stream() -> None:
        for number in numbers:
            # The prefix must be nobody's: whoever came second would find the blocks of the first.
            prompts = [f"({name} {number}) {story_prompt(0, number)}" for name in ("b", "a")]
            order = ("auto", model) if number % 2 else (model, "auto")
            took = {name: await ask(client, name, prompts.pop(), max_tokens) for name in order}
            done.append((took[model], took["auto"]))
            progress.advance(task)

    await asyncio.gather(*(stream() for _ in range(streams)))
    return done


@application.command()
def main(
    model: Annotated[str, typer.Option(help="The model that `auto` chooses for these prompts.")] = "mini",
    url: Annotated[str, typer.Option(help="A cluster that runs.")] = "http://127.0.0.1:8000",
    pairs: Annotated[int, typer.Option(min=10, max=5000, help="Pairs of requests.")] = 300,
    streams: Annotated[int, typer.Option(min=1, max=256, help="Pairs at a time.")] = 16,
    max_tokens: Annotated[int, typer.Option(min=2, max=256, help="Tokens of an answer.")] = 32,
    key: Annotated[str | None, typer.Option(envvar="POINTSMAN_API_KEY", help="API key.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures there, as JSON.")] = None,
) -> None:
    """Tokens a second and time to the first text through `auto`, over those of the named model."""
    headers = {"authorization": f"Bearer {key}"} if key else {}

    async def measure(progress: Progress) -> list[tuple[Timed, Timed]]:
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=300.0, trust_env=False) as client:
            await asyncio.gather(*(ask(client, model, story_prompt(1, number), 8) for number in range(streams)))
            return await run(client, model, pairs, streams, max_tokens, progress)

    with Progress(console=console()) as progress:
        found = asyncio.run(measure(progress))
    try:
        cost = cost_of(found)
    except ValueError as error:
        console().print(str(error))
        raise typer.Exit(2) from None
    speed, first = cost.tokens_per_s, cost.first_s
    console().print(
        f"auto over {model}, {cost.pairs} pairs ({cost.left_out} left out): tokens/s {speed.median:.3f} "
        f"[{speed.low:.3f}, {speed.high:.3f}], first text {first.median:.3f} [{first.low:.3f}, {first.high:.3f}]"
    )
    if out is not None:
        out.write_text(json.dumps(asdict(cost), indent=2))
    else:
        write_json(asdict(cost))


if __name__ == "__main__":
    application()
