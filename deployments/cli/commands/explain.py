"""`pointsman explain`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from deployments.cli import output
from deployments.cli.errors import CliError, ExitCode
from deployments.cli.groups import FLAG
from deployments.cli.options import ApiKey, Json, StateDir, Url


def explain(  # noqa: PLR0913, PLR0917 - every option is an argument
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="The question; `-` reads it from stdin.", show_default=False),
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", metavar="NAME", help="A model, a role, or auto.")] = "auto",
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", min=1, metavar="N", help="Tokens of the answer at most.", show_default=False),
    ] = None,
    latency_class: Annotated[
        str | None,
        typer.Option("--latency-class", metavar="CLASS", help="interactive, standard or batch.", show_default=False),
    ] = None,
    retrieval_confidence: Annotated[
        float | None,
        typer.Option(
            "--retrieval-confidence",
            min=0,
            max=1,
            metavar="C",
            help="How well retrieved text fits.",
            show_default=False,
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", metavar="MODEL", help="A model that may answer; can be repeated.", show_default=False),
    ] = None,
    business_critical: Annotated[
        bool, typer.Option("--business-critical", metavar=FLAG, help="Call the request business-critical.")
    ] = False,
    url: Url = None,
    key: ApiKey = None,
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """Say which model would answer a prompt, and why: every candidate with its scores. Runs no model."""
    from deployments.cli.api import Api
    from deployments.cli.explanation import ask, show
    from deployments.cli.place import find_place

    place = find_place(state_dir)
    state = place.state if url else place.require_state()
    text = sys.stdin.read().strip() if prompt in (None, "-") else prompt
    if not text:
        raise CliError("there is no prompt", 'Write it as an argument: pointsman explain "Hello".', ExitCode.USAGE)
    knobs: dict[str, object] = {
        "latency_class": latency_class,
        "retrieval_confidence": retrieval_confidence,
        "allowed_models": allow or None,
        "business_critical": business_critical or None,
    }
    body: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": text}]}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    if any(value is not None for value in knobs.values()):
        body["pointsman"] = {name: value for name, value in knobs.items() if value is not None}
    route, raw = ask(Api(url or (state.url if state is not None else ""), key, place), body)
    if json:
        output.print_json(raw)
        return
    show(route)
