"""`python -m loadtests.policies`: always the mini, always the dense model, a mix of both at equal cost, and `auto`, on the same questions."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import httpx
import typer
from rich.progress import Progress
from rich.table import Table

from loadtests.dominance import Arm, Asked, dominates, summarise_arm
from loadtests.perturb import changed_manners
from loadtests.questions import MAX_ITEMS, Item, items
from loadtests.show import console, milliseconds, write_json

application = typer.Typer(add_completion=False, help=__doc__)

MAX_TOKENS: Final = 20
TUNING_SEED: Final = 0
"""The questions that `loadtests.calibrate` fits on by default. None of them is asked here."""


def fresh_items(count: int, seed: int, tuned: int) -> list[Item]:
    """`count` questions that are not among the `tuned` first ones of the series used for tuning."""
    known = {item.question for item in items(tuned, TUNING_SEED)}
    made = [item for item in items(min(MAX_ITEMS, 4 * count + tuned), seed) if item.question not in known]
    if len(made) < count:
        raise typer.BadParameter(f"only {len(made)} questions are left that were not tuned on; ask for fewer")
    return made[:count]


class Asker:
    """Asks one cluster."""

    def __init__(self, client: httpx.AsyncClient, strong: str, knobs: dict[str, object]) -> None:
        self._client = client
        self._strong = strong
        self._knobs = knobs

    async def ask(self, model: str, question: str) -> tuple[str, float, int, int]:
        """The answer, seconds until it was whole, tokens of the strong model, attempts. Raises `httpx.HTTPError`."""
        body: dict[str, object] = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": MAX_TOKENS,
            "temperature": 0,
        }
        if model == "auto":
            body["pointsman"] = self._knobs
        began = asyncio.get_running_loop().time()
        reply = await self._client.post("/v1/chat/completions", json=body)
        seconds = asyncio.get_running_loop().time() - began
        reply.raise_for_status()
        found = reply.json()
        told = found["pointsman"]
        trail = told.get("trail") or [{"model": told["model"], "tokens": found["usage"]["total_tokens"]}]
        strong = sum(int(step.get("tokens", 0)) for step in trail if step["model"] == self._strong)
        return found["choices"][0]["message"]["content"] or "", seconds, strong, len(trail)


async def ask_arm(asker: Asker, model: str, item: Item, seed: int) -> Asked:
    """One question and the same with other manners; consistent if both answers are right, or both the same."""
    source = random.Random(f"{seed} {item.question}")
    first, seconds, strong, attempts = await asker.ask(model, item.question)
    second, again_s, again_strong, _ = await asker.ask(model, changed_manners(item.question, source))
    both_right = item.is_right(first) and item.is_right(second)
    same = " ".join(first.lower().split()) == " ".join(second.lower().split())
    return Asked(item.is_right(first), both_right or same, (seconds, again_s), strong + again_strong, attempts)


async def compare(
    client: httpx.AsyncClient, asked: Sequence[Item], pilot: Sequence[Item], names: tuple[str, str], knobs: dict[str, object],
    streams: int, seed: int, progress: Progress,
) -> dict[str, list[Asked]]:  # fmt: skip
    """All arms on all questions, arms in a random order for each question. `names` are the mini and the strong model.

    The share of the mix is taken from the pilot, so that it costs as many tokens of the strong model as `auto`.
    """
    mini, strong = names
    asker = Asker(client, strong, knobs)
    slots = asyncio.Semaphore(streams)

    async def one(model: str, item: Item) -> Asked:
        async with slots:
            return await ask_arm(asker, model, item, seed)

    task = progress.add_task("pilot", total=2 * len(pilot))

    async def counted(model: str, item: Item) -> Asked:
        result = await one(model, item)
        progress.advance(task)
        return result

    by_auto = await asyncio.gather(*(counted("auto", item) for item in pilot))
    by_strong = await asyncio.gather(*(counted(strong, item) for item in pilot))
    share = min(1.0, sum(a.strong_tokens for a in by_auto) / max(1, sum(a.strong_tokens for a in by_strong)))
    task = progress.add_task("questions", total=4 * len(asked))

    async def question(item: Item) -> dict[str, Asked]:
        source = random.Random(f"mix {seed} {item.question}")
        models = {"mini": mini, "dense": strong, "mix": strong if source.random() < share else mini, "auto": "auto"}
        order = list(models)
        source.shuffle(order)
        return {arm: await counted(models[arm], item) for arm in order}

    answers = await asyncio.gather(*(question(item) for item in asked))
    return {arm: [answer[arm] for answer in answers] for arm in ("mini", "dense", "mix", "auto")}


@application.command()
def main(  # noqa: PLR0913, PLR0917 - a command's options
    url: Annotated[str, typer.Option(help="A cluster that runs.")] = "http://127.0.0.1:8000",
    mini: Annotated[str, typer.Option(help="Model that is cheap.")] = "mini",
    strong: Annotated[str, typer.Option(help="Model that is dear.")] = "dense",
    questions: Annotated[int, typer.Option(min=20, max=1000)] = 200,
    tuned: Annotated[int, typer.Option(min=40, max=MAX_ITEMS, help="Questions of the calibration, which are left out.")] = 600,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Confidence below which `auto` goes on to the dear model.")] = 0.3,
    streams: Annotated[int, typer.Option(min=1, max=64, help="Questions at a time.")] = 8,
    seed: Annotated[int, typer.Option(min=1, help="Series of questions.")] = 1,
    key: Annotated[str | None, typer.Option(envvar="POINTSMAN_API_KEY", help="API key.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures there, as JSON.")] = None,
) -> None:  # fmt: skip
    """Which way of choosing a model is better, and whether `auto` is beaten by one of the others in everything."""
    asked = fresh_items(questions, seed, tuned)
    pilot = items(max(20, questions // 5), TUNING_SEED)
    knobs: dict[str, object] = {"min_confidence": threshold, "retries": 1, "grounding": False}
    headers = {"authorization": f"Bearer {key}"} if key else {}

    async def run(progress: Progress) -> dict[str, list[Asked]]:
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=300.0, trust_env=False) as client:
            return await compare(client, asked, pilot, (mini, strong), knobs, streams, seed, progress)

    with Progress(console=console()) as progress:
        answers = asyncio.run(run(progress))
    arms = [summarise_arm(name, found) for name, found in answers.items()]
    console().print(_table(arms, questions))
    better = [arm for arm in ("mini", "dense", "mix") if dominates(answers[arm], answers["auto"])]
    console().print(f"auto is dominated by {', '.join(better) or 'none of them'} (paired bootstrap, 95 %)")
    found = {"arms": [asdict(arm) for arm in arms], "dominated_by": better, "threshold": threshold}
    if out is not None:
        out.write_text(json.dumps(found, indent=2))
    else:
        write_json(found)


def _table(arms: Sequence[Arm], questions: int) -> Table:
    table = Table(title=f"{questions} questions, each asked twice", title_justify="left")
    for column in ("policy", "right", "consistent", "p50", "p95", "tokens of the dear model", "attempts"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for arm in arms:
        table.add_row(
            arm.name,
            f"{arm.right:.0%}",
            f"{arm.consistent:.0%}",
            milliseconds(arm.p50_s),
            milliseconds(arm.p95_s),
            str(arm.strong_tokens),
            f"{arm.attempts:.2f}",
        )
    return table


if __name__ == "__main__":
    application()
