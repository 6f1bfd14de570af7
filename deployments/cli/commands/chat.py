"""`pointsman chat`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from deployments.cli.errors import CliError, ExitCode
from deployments.cli.groups import FLAG
from deployments.cli.options import ApiKey, Json, StateDir, Url


def chat(  # noqa: PLR0913, PLR0917 - every option is an argument
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="The question; `-` reads it from stdin.", show_default=False),
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", metavar="NAME", help="A model, a role, or auto.")] = "auto",
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="A system prompt.", show_default=False)
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", min=1, metavar="N", help="Tokens of the answer at most.", show_default=False),
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, max=2, metavar="T", help="0 always says the same.")
    ] = 0.0,
    no_stream: Annotated[
        bool, typer.Option("--no-stream", metavar=FLAG, help="Ask for the answer in one piece.")
    ] = False,
    url: Url = None,
    key: ApiKey = None,
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """Ask a question, or talk turn by turn; says which model answered, why, and the trace id."""
    from deployments.cli.answer import Message, Question
    from deployments.cli.api import Api
    from deployments.cli.conversation import Talk, ask_once, converse
    from deployments.cli.place import find_place

    place = find_place(state_dir)
    state = place.state if url else place.require_state()
    api = Api(url or (state.url if state is not None else ""), key, place)
    question = Question(
        messages=[Message("system", system)] if system else [],
        model=model,
        max_tokens=max_tokens,
        temperature=temperature,
        stream=not no_stream,
    )
    talk = Talk(api, place, state is not None and state.url == api.url, question)
    if prompt is None and sys.stdin.isatty() and not json:
        converse(talk)
        return
    text = sys.stdin.read().strip() if prompt in (None, "-") else prompt
    if not text:
        raise CliError("there is no prompt", 'Write it as an argument: pointsman chat "Hello".', ExitCode.USAGE)
    ask_once(talk, text, as_json=json)
