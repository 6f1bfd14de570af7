"""`python -m loadtests.intents`: how often the intent of a prompt is told right, on prompts that nothing was tuned on."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.table import Table

from cluster.routing.intent import lexical_intent
from loadtests.show import console, percent, write_json

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
    """Of one half."""

    prompts: int
    right: float
    """Share of prompts whose intent is told right, 0 to 1."""
    silent: float
    """Share of prompts of which nothing is told."""
    by_intent: dict[str, float]
    microseconds: float
    """Mean time of one."""


def labelled() -> list[Labelled]:
    """All prompts of the labelled set."""
    lines = DATA.read_text(encoding="utf-8").splitlines()
    return [Labelled(*line.split("\t", 1)) for line in lines if line]


def accuracy(prompts: list[Labelled]) -> Accuracy:
    """How the lexical classifier does. Raises `ValueError` for no prompts."""
    if not prompts:
        raise ValueError("there is no accuracy on no prompts")
    started = time.perf_counter()
    told = [lexical_intent(prompt.text).value for prompt in prompts]
    taken = time.perf_counter() - started
    right = Counter(prompt.intent for prompt, found in zip(prompts, told, strict=True) if prompt.intent == found)
    all_of = Counter(prompt.intent for prompt in prompts)
    return Accuracy(
        prompts=len(prompts),
        right=right.total() / len(prompts),
        silent=told.count(None) / len(prompts),
        by_intent={intent: right[intent] / count for intent, count in sorted(all_of.items())},
        microseconds=taken / len(prompts) * 1e6,
    )


@application.command()
def main(as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False) -> None:
    """Accuracy of the lexical intent on the half that was looked at while its signs were written, and on the half held out."""
    prompts = labelled()
    halves = {
        "looked at": accuracy([prompt for prompt in prompts if not prompt.held_out]),
        "held out": accuracy([prompt for prompt in prompts if prompt.held_out]),
    }
    if as_json:
        write_json({name: asdict(half) for name, half in halves.items()})
        return
    table = Table("half", "prompts", "right", "nothing told", *halves["held out"].by_intent, "us each")
    for name, half in halves.items():
        shares = (percent(share) for share in half.by_intent.values())
        table.add_row(
            name, str(half.prompts), percent(half.right), percent(half.silent), *shares, f"{half.microseconds:.0f}"
        )
    console().print(table)


if __name__ == "__main__":
    application()
