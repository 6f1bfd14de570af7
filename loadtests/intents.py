"""`python -m loadtests.intents`: how often the intent of a prompt is told right, on prompts that nothing was tuned on."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final

import httpx
import numpy as np
import typer
from rich.table import Table

from cluster.routing.intent import lexical_intent
from cluster.routing.intent_prototypes import (
    LOOKED_AT,
    PROTOTYPES_FILE,
    Prototypes,
    Vector,
    fit_prototypes,
    read_prototypes,
)
from loadtests.show import console, percent, write_json
from loadtests.stats import quantile

application = typer.Typer(add_completion=False, help=__doc__)

DATA: Final = Path(__file__).parent / "data" / "intents.tsv"
"""One labelled prompt a line: intent, tab, text."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A prompt and what it is for."""

    intent: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether it is kept for measuring. Decided by its text, so that a prompt never changes sides when others are added."""
        return hashlib.sha256(self.text.encode()).digest()[0] % 2 == 0


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Of one way to tell, on one half."""

    prompts: int
    right: float
    """Share of prompts whose intent is told right, 0 to 1."""
    silent: float
    """Share of prompts of which nothing is told."""
    by_intent: dict[str, float]


def labelled() -> list[Labelled]:
    """All prompts of the labelled set."""
    lines = DATA.read_text(encoding="utf-8").splitlines()
    return [Labelled(*line.split("\t", 1)) for line in lines if line]


def accuracy(prompts: Sequence[Labelled], told: Sequence[str | None]) -> Accuracy:
    """How often what was told is right. Raises `ValueError` for no prompts."""
    if not prompts:
        raise ValueError("there is no accuracy on no prompts")
    right = Counter(prompt.intent for prompt, found in zip(prompts, told, strict=True) if prompt.intent == found)
    all_of = Counter(prompt.intent for prompt in prompts)
    return Accuracy(
        prompts=len(prompts),
        right=right.total() / len(prompts),
        silent=list(told).count(None) / len(prompts),
        by_intent={intent: right[intent] / count for intent, count in sorted(all_of.items())},
    )


def lexical(prompts: Sequence[Labelled]) -> list[str | None]:
    """What the words say."""
    return [lexical_intent(prompt.text).value for prompt in prompts]


def encoded(prompts: Sequence[Labelled], vectors: Mapping[str, Vector], prototypes: Prototypes) -> list[str | None]:
    """What the encoder says, as the ingress uses it: with the words."""
    return [prototypes.nearest(vectors[prompt.text], lexical_intent(prompt.text)).value for prompt in prompts]


def embed(
    url: str, key: str | None, encoder: str, prompts: Sequence[Labelled]
) -> tuple[dict[str, Vector], list[float]]:
    """Vectors by text, of what the ingress would encode of each, one request after the other; and the seconds of each, sorted."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    vectors, taken = {}, []
    with httpx.Client(base_url=url, headers=headers, timeout=60.0, trust_env=False) as client:
        for prompt in prompts:
            started = time.perf_counter()
            reply = client.post("/v1/embeddings", json={"model": encoder, "input": prompt.text[:LOOKED_AT]})
            taken.append(time.perf_counter() - started)
            reply.raise_for_status()
            vectors[prompt.text] = np.array(reply.json()["data"][0]["embedding"], dtype=np.float32)
    return vectors, sorted(taken)


@application.command()
def main(
    url: Annotated[str | None, typer.Option(help="A cluster that runs, to ask its encoder, too.")] = None,
    encoder: Annotated[str, typer.Option(help="Name of the encoder there.")] = "encoder",
    fit: Annotated[str | None, typer.Option(metavar="SOURCE", help="Fit prototypes of the encoder with that source, and keep them.")] = None,
    key: Annotated[str | None, typer.Option(envvar="POINTSMAN_API_KEY", help="API key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:  # fmt: skip
    """Accuracy on the half that signs and prototypes were made from, and on the half held out."""
    prompts = labelled()
    halves = {"made from": [p for p in prompts if not p.held_out], "held out": [p for p in prompts if p.held_out]}
    figures = {f"words, {name}": accuracy(half, lexical(half)) for name, half in halves.items()}
    if url is not None:
        vectors, taken = embed(url, key, encoder, prompts)
        if fit is not None:
            own = halves["made from"]
            found = fit_prototypes(fit, np.stack([vectors[p.text] for p in own]), [p.intent for p in own])
            PROTOTYPES_FILE.write_text(found.to_json(), encoding="utf-8")
            console().print(f"wrote {PROTOTYPES_FILE.name}")
        prototypes = read_prototypes()
        figures |= {
            f"encoder, {name}": accuracy(half, encoded(half, vectors, prototypes)) for name, half in halves.items()
        }
        console().print(f"a vector over HTTP, one at a time: median {quantile(taken, 0.5) * 1000:.1f} ms")
    if as_json:
        write_json({name: asdict(half) for name, half in figures.items()})
        return
    table = Table("intent", *figures, title="Share told right", title_justify="left")
    table.add_row("all", *(f"{percent(half.right)} of {half.prompts}" for half in figures.values()))
    for intent in figures["words, held out"].by_intent:
        table.add_row(intent, *(percent(half.by_intent.get(intent)) for half in figures.values()))
    table.add_row("nothing told", *(percent(half.silent) for half in figures.values()))
    console().print(table)


if __name__ == "__main__":
    application()
