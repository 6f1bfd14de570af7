"""The command `pointsman` and its commands, grouped by task."""

from __future__ import annotations

from typing import Annotated

import typer

from deployments.cli import output
from deployments.cli.commands import (
    chat,
    config,
    cost,
    dashboards,
    down,
    experts,
    explain,
    keys,
    models,
    precision,
    records,
    render,
    serve,
    status,
    trace,
    up,
)
from deployments.cli.errors import ExitCode
from deployments.cli.groups import FLAG, Command, CommandGroup, Commands

RUN, ASK, LOOK, SET_UP = "Run a cluster", "Ask it", "Look inside", "Set up"

app = typer.Typer(
    name="pointsman",
    cls=Commands,
    help="Serve dense, sparse and mini language models behind one traced, OpenAI-compatible endpoint.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        output.print_line(f"pointsman {version('pointsman')}")
        raise typer.Exit


@app.callback()
def pointsman(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, metavar=FLAG, help="Print the version.")
    ] = False,
) -> None:
    """Serve dense, sparse and mini language models behind one traced, OpenAI-compatible endpoint."""
    if context.invoked_subcommand is None:
        output.stdout().print(context.get_help(), end="")


app.command("up", cls=Command, rich_help_panel=RUN)(up.up)
app.command("down", cls=Command, rich_help_panel=RUN)(down.down)
app.command("serve", cls=Command, rich_help_panel=RUN)(serve.serve)
app.command("chat", cls=Command, rich_help_panel=ASK)(chat.chat)
app.command("explain", cls=Command, rich_help_panel=ASK)(explain.explain)
app.command("status", cls=Command, rich_help_panel=LOOK)(status.status)
app.command("trace", cls=Command, rich_help_panel=LOOK)(trace.trace)
app.command("records", cls=Command, rich_help_panel=LOOK)(records.records)
app.command("cost", cls=Command, rich_help_panel=LOOK)(cost.cost)
app.add_typer(experts.app, name="experts", cls=CommandGroup, rich_help_panel=LOOK)
app.add_typer(models.app, name="models", cls=CommandGroup, rich_help_panel=SET_UP)
app.add_typer(config.app, name="config", cls=CommandGroup, rich_help_panel=SET_UP)
app.add_typer(precision.app, name="precision", cls=CommandGroup, rich_help_panel=SET_UP)
app.command("render", cls=Command, rich_help_panel=SET_UP)(render.render)
app.add_typer(keys.app, name="keys", cls=CommandGroup, rich_help_panel=SET_UP)
app.add_typer(dashboards.app, name="dashboards", cls=CommandGroup, rich_help_panel=SET_UP)


def run() -> int:
    """Run the command with this process's arguments; returns the exit status."""
    try:
        app(prog_name="pointsman")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return ExitCode.OK
