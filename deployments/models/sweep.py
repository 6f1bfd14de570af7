"""`python -m deployments.models.sweep`: the tables that chose the parameters of the sparse and the mini model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from deployments.models.errors import ModelError
from deployments.models.parameters import MINI, SPARSE
from deployments.models.recipes import ingredient
from deployments.models.sources import cache_root, resolve
from deployments.models.text import KINDS

application = typer.Typer(add_completion=False, help=__doc__)
_QUESTION = "What is the capital of France?"
_SWAP_ROWS = 2
_Keep = Annotated[Path, typer.Option(help="Folder for the checkpoints that are made.")]
_Tokens = Annotated[int, typer.Option(min=1024, help="Held-out tokens of each kind to measure on.")]


def _silent(message: str, done: float) -> None:
    """Print nothing: the table is the output."""


@application.command()
def sparse(
    keep: _Keep,
    sizes: Annotated[str, typer.Option(help="shared:expert neurons, separated by commas.")] = "896:192,1024:192",
    tokens: _Tokens = 6144,
) -> None:
    """Perplexity of sparse models of several sizes against the dense one, and what a swap of experts changes."""
    from deployments.models import evaluate
    from deployments.models.sparse import write_sparse

    columns = ["shared", "expert", "active of 1536", *KINDS, "KL of swaps", _QUESTION, "fit"]
    rows = [["dense", "", "1536", *_plain(tokens), "", "", ""]]
    for size in sizes.split(","):
        shared, expert = (int(part) for part in size.split(":"))
        folder = keep / f"sparse-{shared}-{expert}"
        folder.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        parameters = replace(SPARSE, shared_neurons=shared, expert_neurons=expert)
        write_sparse(_dense(), _conversations(), folder, parameters, _silent)
        took = f"{time.monotonic() - start:.0f} s"
        model = evaluate.load_model(folder)
        swaps = [evaluate.swap_divergence(model, evaluate.held_out(folder, k)[:_SWAP_ROWS], 0, 1) for k in KINDS]
        divergence = ", ".join(f"{value:.3f}" for value in swaps)
        quality = _relative(folder, tokens)
        reply = evaluate.answer(folder, _QUESTION)
        rows.append([str(shared), str(expert), str(shared + 2 * expert), *quality, divergence, reply, took])
        _tell(columns, rows[-1])
    _show("sparse", columns, rows)


@application.command()
def mini(
    keep: _Keep,
    removed: Annotated[str, typer.Option(help="layers:longest run, separated by commas.")] = "0:1,2:1,4:1,4:2,4:4",
    int8: Annotated[bool, typer.Option(help="int8 weights and activations, or bfloat16.")] = MINI.int8,
    tokens: _Tokens = 6144,
) -> None:
    """Perplexity of mini models with several numbers of layers removed, against the dense one."""
    from deployments.models import evaluate
    from deployments.models.mini import write_mini

    columns = ["removed", "longest run", *KINDS, _QUESTION, "fit"]
    rows = [["dense", "", *_plain(tokens), "", ""]]
    for choice in removed.split(","):
        count, longest = (int(part) for part in choice.split(":"))
        folder = keep / f"mini-{count}-{longest}"
        folder.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        parameters = replace(MINI, int8=int8, removed_layers=count, longest_run=longest)
        write_mini(_dense(), _conversations(), folder, parameters, _silent)
        took = f"{time.monotonic() - start:.0f} s"
        reply = evaluate.answer(folder, _QUESTION)
        rows.append([str(count), str(longest), *_relative(folder, tokens), reply, took])
        _tell(columns, rows[-1])
    _show("mini (int8)" if int8 else "mini (bfloat16)", columns, rows)


@application.command()
def speed(
    folders: Annotated[list[Path], typer.Argument(help="Model folders; the first is compared with.")],
    streams: Annotated[str, typer.Option(help="Numbers of streams, separated by commas.")] = "1,16",
    rounds: Annotated[int, typer.Option(min=1, help="Alternating rounds.")] = 7,
    core: Annotated[int, typer.Option(min=0, help="Core that every server is bound to.")] = 0,
) -> None:
    """Tokens per second of model folders on the bare vLLM server, one thread each, in alternating rounds."""
    from deployments.models.engine_speed import measure

    counts = [int(part) for part in streams.split(",")]
    try:
        found = measure(folders, counts, rounds, core)
    except ModelError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    rows = [
        [folder.name, *(text for each in speeds for text in (f"{each.tokens_per_s:.0f}", f"{each.ratio:.2f}"))]
        for folder, speeds in found.items()
    ]
    heads = [head for count in counts for head in (f"tokens/s, {count} streams", "ratio")]
    _show("speed", ["model", *heads], rows)


def _dense() -> Path:
    return resolve("embedded:dense", None, _silent)


def _conversations() -> Path:
    return ingredient("conversations", cache_root() / "models", _silent)


def _plain(tokens: int) -> list[str]:
    from deployments.models import evaluate

    return [f"{value:.2f}" for value in evaluate.perplexities(_dense(), tokens).values()]


def _relative(folder: Path, tokens: int) -> list[str]:
    from deployments.models import evaluate

    reference, found = evaluate.perplexities(_dense(), tokens), evaluate.perplexities(folder, tokens)
    return [f"{found[kind]:.2f} ({100 * (found[kind] / reference[kind] - 1):+.1f}%)" for kind in KINDS]


def _tell(columns: Sequence[str], row: Sequence[str]) -> None:
    """Say a row as soon as it is measured: the next one takes minutes."""
    typer.echo(", ".join(f"{name} {value}" for name, value in zip(columns, row, strict=True)), err=True)


def _show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    Console(width=160).print(table)


if __name__ == "__main__":
    application()
