"""`pointsman experts`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.cli.errors import CliError, ExitCode
from deployments.cli.groups import FLAG, Command
from deployments.cli.options import ApiKey, Json, StateDir, Url

if TYPE_CHECKING:
    from deployments.cli.api import Api

app = typer.Typer(
    help="See which experts of sparse models are hot, and how stable routing is.", invoke_without_command=True
)


class By(StrEnum):
    """What maps are drawn by."""

    TRAFFIC = "traffic"


Model = Annotated[
    str | None, typer.Option("--model", "-m", metavar="NAME", help="Only this model.", show_default=False)
]
ByOption = Annotated[
    By | None, typer.Option("--by", metavar="traffic", help="A map for each kind of traffic.", show_default=False)
]
Watch = Annotated[bool, typer.Option("--watch", "-w", metavar=FLAG, help="Go on showing it until Ctrl-C.")]


@app.callback()
def experts(
    context: typer.Context,
    model: Model = None,
    by: ByOption = None,
    watch: Watch = False,
    url: Url = None,
    key: ApiKey = None,
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """See which experts of sparse models are hot, and how stable routing is. Without a command: `show`."""
    if context.invoked_subcommand is None:
        show(model, by, watch, url, key, state_dir, json)
    elif any(_typed(context, name) for name in context.params):
        raise CliError("these options belong to a command", "Write them behind it.", ExitCode.USAGE)


@app.command("show", cls=Command)
def show(
    model: Model = None,
    by: ByOption = None,
    watch: Watch = False,
    url: Url = None,
    key: ApiKey = None,
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """Show a heat map of each sparse model, its pools of experts, hot experts with who heats them, and which requests were wide."""
    from deployments.cli.experts_show import show as show_all

    show_all(_api(url, key, state_dir), model=model, by_traffic=by is By.TRAFFIC, as_json=json, watch=watch)


@app.command("stability", cls=Command)
def stability(  # noqa: PLR0913, PLR0917 - every option is an argument
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="A sparse model, a role, or auto. Default: the only sparse model.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", metavar="TEXT", help="What is asked, and varied.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="The same, from a file.", show_default=False)
    ] = None,
    variants: Annotated[int, typer.Option(min=1, max=100, help="Near-identical prompts that are compared.")] = 7,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, max=512, help="Tokens of each answer at most.")
    ] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Which words and gaps are varied.")] = 0,
    url: Url = None,
    key: ApiKey = None,
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """Ask near-identical prompts, and score how much routing changes: experts of each token, model, replica."""
    from deployments.cli.experts_stability import DEFAULT_PROMPT, Plan, run

    text = _text(prompt, file) or DEFAULT_PROMPT
    run(_api(url, key, state_dir), Plan(model, text, variants, max_tokens, seed), as_json=json)


def _typed(context: typer.Context, name: str) -> bool:
    """Whether an option was on the command line, not in the environment."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _text(prompt: str | None, file: Path | None) -> str | None:
    if file is None:
        text = prompt
    elif prompt is not None:
        raise CliError("--prompt and --file are two prompts", "Leave one of them out.", ExitCode.USAGE)
    else:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
            raise CliError(f"{file} cannot be read: {why}", code=ExitCode.USAGE) from None
    if text is not None and not text.strip():
        raise CliError("the prompt is empty", code=ExitCode.USAGE)
    return text


def _api(url: str | None, key: str | None, state_dir: Path | None) -> Api:
    from deployments.cli.api import Api
    from deployments.cli.place import find_place

    place = find_place(state_dir)
    return Api(url or place.require_state().url, key, place)
