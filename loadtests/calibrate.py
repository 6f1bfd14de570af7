"""`python -m loadtests.calibrate`: how often answers are right, by how sure a model was of them, and the line between the two."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import httpx
import typer
import yaml

from cluster.routing.confidence import TOP, ConfidenceMeter
from loadtests.calibration_fit import calibration_error, fit, separation
from loadtests.questions import MAX_ITEMS, Item, items
from loadtests.show import console, write_json
from loadtests.stats import Interval

application = typer.Typer(add_completion=False, help=__doc__)

MAX_TOKENS = 20


@dataclass(frozen=True, slots=True)
class Answered:
    """One question, how sure the model was of its answer, and whether it is right."""

    kind: str
    raw: float
    """Raw confidence, 0 to 1."""
    right: bool


async def ask(client: httpx.AsyncClient, model: str, item: Item) -> Answered:
    """Ask one question. Raises `httpx.HTTPError`."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": item.question}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": TOP,
    }
    reply = await client.post("/v1/chat/completions", json=body)
    reply.raise_for_status()
    choice = reply.json()["choices"][0]
    meter = ConfidenceMeter()
    for token in choice["logprobs"]["content"]:
        meter.add(token["logprob"], sorted((other["logprob"] for other in token["top_logprobs"]), reverse=True))
    told = meter.result()
    return Answered(
        item.kind, told.score if told is not None else 0.0, item.is_right(choice["message"]["content"] or "")
    )


async def ask_all(url: str, key: str | None, model: str, asked: list[Item], streams: int) -> list[Answered]:
    """Ask `streams` questions at a time; answers in the order of the questions."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    slots = asyncio.Semaphore(streams)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=300.0, trust_env=False) as client:

        async def one(item: Item) -> Answered:
            async with slots:
                return await ask(client, model, item)

        return list(await asyncio.gather(*(one(item) for item in asked)))


@dataclass(frozen=True, slots=True)
class Report:
    """What came of one model. Shares, scores and errors are 0 to 1."""

    model: str
    questions: int
    right: float
    right_by_kind: dict[str, float]
    error_raw: float
    """Expected calibration error of the raw confidence, on the half that was held out."""
    error: float
    """The same of the calibrated one."""
    auroc: Interval
    calibration: tuple[tuple[float, float], ...]


def report(model: str, answered: list[Answered]) -> Report:
    """Fit on every second answer, judge on the others. Raises `ValueError` if these are all right or all wrong."""
    fitted, held_out = answered[::2], answered[1::2]
    calibration = fit([a.raw for a in fitted], [a.right for a in fitted])
    scores, right = [calibration.score(a.raw) for a in held_out], [a.right for a in held_out]
    by_kind = {kind: [a.right for a in answered if a.kind == kind] for kind in sorted({a.kind for a in answered})}
    return Report(
        model=model,
        questions=len(answered),
        right=sum(a.right for a in answered) / len(answered),
        right_by_kind={kind: sum(found) / len(found) for kind, found in by_kind.items()},
        error_raw=calibration_error([a.raw for a in held_out], right),
        error=calibration_error(scores, right),
        auroc=separation(scores, right),
        calibration=calibration.points,
    )


@application.command()
def main(
    model: Annotated[list[str], typer.Option("--model", help="Chat model; can be repeated.")],
    url: Annotated[str, typer.Option(help="A cluster that runs.")] = "http://127.0.0.1:8000",
    questions: Annotated[int, typer.Option(min=40, max=MAX_ITEMS, help="Questions; half of them to fit on.")] = 600,
    streams: Annotated[int, typer.Option(min=1, max=256, help="Questions at a time.")] = 16,
    seed: Annotated[int, typer.Option(help="Series of questions.")] = 0,
    key: Annotated[str | None, typer.Option(envvar="POINTSMAN_API_KEY", help="API key.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures there, as JSON.")] = None,
) -> None:
    """Calibrate models; prints what to put under `models.NAME.calibration`."""
    reports = []
    for name in model:
        answered = asyncio.run(ask_all(url, key, name, items(questions, seed), streams))
        found = report(name, answered)
        reports.append(asdict(found))
        console().print(
            f"{name}: {found.right:.0%} of {questions} right; on the half held out: calibration error {found.error:.3f} "
            f"(raw {found.error_raw:.3f}), AUROC {found.auroc.median:.3f} [{found.auroc.low:.3f}, {found.auroc.high:.3f}]"
        )
        points = [list(point) for point in found.calibration]
        console().print(yaml.safe_dump({"calibration": points}, default_flow_style=True, width=110))
    if out is not None:
        out.write_text(json.dumps(reports, indent=2))
    else:
        write_json(reports)


if __name__ == "__main__":
    application()
