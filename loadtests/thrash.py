"""`python -m loadtests.thrash`: how often a prompt that says the same in other words goes to another model."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Annotated, Final

import httpx
import typer
from rich.table import Table

from loadtests.intents import labelled
from loadtests.perturb import PERTURBATIONS
from loadtests.show import console, percent, write_json

application = typer.Typer(add_completion=False, help=__doc__)

ROUTE: Final = "/v1/route"


@dataclass(frozen=True, slots=True)
class Thrash:
    """Of one kind of perturbation. Shares are 0 to 1, of the prompts that it changes at all."""

    perturbation: str
    prompts: int
    model_changes: float
    role_changes: float
    intent_changes: float


@dataclass(frozen=True, slots=True)
class Routed:
    """What a decision came to."""

    model: str
    role: str | None
    intent: str


def route(client: httpx.Client, text: str, max_tokens: int | None) -> Routed:
    """The cluster's decision about a prompt; runs no model. Raises `httpx.HTTPError`."""
    body: dict[str, object] = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    reply = client.post(ROUTE, json=body)
    reply.raise_for_status()
    told = reply.json()
    return Routed(told["model"], told["role"], told["signals"]["intent"])


def measure(client: httpx.Client, texts: list[str], perturbation: str, max_tokens: int | None, seed: int) -> Thrash:
    """Compare each prompt's decision with that of its perturbed form."""
    source = random.Random(seed)
    pairs = []
    for text in texts:
        other = PERTURBATIONS[perturbation](text, source)
        if other != text:
            pairs.append((route(client, text, max_tokens), route(client, other, max_tokens)))
    count = max(1, len(pairs))
    return Thrash(
        perturbation,
        len(pairs),
        sum(one.model != other.model for one, other in pairs) / count,
        sum(one.role != other.role for one, other in pairs) / count,
        sum(one.intent != other.intent for one, other in pairs) / count,
    )


@application.command()
def main(
    url: Annotated[str, typer.Option(help="A cluster that runs.")] = "http://127.0.0.1:8000",
    prompts: Annotated[int, typer.Option(min=1, max=5000, help="Prompts of the labelled set.")] = 100,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens that the requests ask for; default: open.")
    ] = 64,
    seed: Annotated[int, typer.Option(help="Series of perturbations.")] = 0,
    key: Annotated[str | None, typer.Option(envvar="POINTSMAN_API_KEY", help="API key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Perturb prompts in case, spacing, words, order and manners, and see whether `auto` still sends them to the same model."""
    texts = [prompt.text for prompt in labelled()]
    random.Random(seed).shuffle(texts)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=url, headers=headers, timeout=30.0, trust_env=False) as client:
        found = [measure(client, texts[:prompts], name, max_tokens, seed) for name in PERTURBATIONS]
    if as_json:
        write_json([asdict(one) for one in found])
        return
    table = Table("perturbation", "prompts", "other model", "other role", "other intent")
    for one in found:
        shares = (percent(share) for share in (one.model_changes, one.role_changes, one.intent_changes))
        table.add_row(one.perturbation, str(one.prompts), *shares)
    console().print(table)


if __name__ == "__main__":
    application()
