"""`pointsman config`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deployments.cli import output
from deployments.cli.errors import ExitCode
from deployments.cli.groups import FLAG, Command
from deployments.cli.options import ConfigStateDir, Json

app = typer.Typer(
    help="Check a config, print its schema, show what is in force, change a running cluster.", no_args_is_help=True
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="A cluster's config (YAML).", show_default=False)]

Kubernetes = Annotated[
    bool, typer.Option("--kubernetes", metavar=FLAG, help="Name, too, what is unsafe or cannot work on Kubernetes.")
]


@app.command("check", cls=Command)
def check(file: File, json: Json = False, kubernetes: Kubernetes = False) -> ExitCode:
    """Name every mistake in a config, with its path and line. Exit status 2 if there are any."""
    from cluster.config.check_deployment import check_deployment
    from cluster.config.load import ConfigError, parse_config
    from deployments.cli.config_files import read_text

    text = read_text(file)
    try:
        config = parse_config(text, str(file), check_deployment if kubernetes else None)
    except ConfigError as error:
        if json:
            mistakes = [
                {"path": each.path, "line": each.line, "message": each.message, "remedy": each.remedy}
                for each in error.mistakes
            ]
            output.print_json({"file": str(file), "valid": False, "mistakes": mistakes})
            return ExitCode.USAGE
        count = "1 mistake" if len(error.mistakes) == 1 else f"{len(error.mistakes)} mistakes"
        output.print_line((f"{file}: {count}", "bold red"))
        for each in sorted(error.mistakes, key=lambda each: each.line or 0):
            line = f"line {each.line}  " if each.line is not None else ""
            output.print_line("  ", (line, "dim"), (each.path or "the file", "bold"), f": {each.message}")
            if each.remedy:
                output.print_line(("    → " + each.remedy, "cyan"))
        return ExitCode.USAGE
    if json:
        output.print_json({"file": str(file), "valid": True, "mistakes": []})
        return ExitCode.OK
    output.print_line((f"{file}: no mistakes", "bold green"))
    for name, model in config.models.items():
        output.print_line(f"  {name}: {model.kind.value}, plays {', '.join(model.roles)}")
    keys = "asks for keys" if config.keys_required else "asks for no keys"
    output.print_line(f"  listens on {config.ingress.host}:{config.ingress.port}, {keys}")
    return ExitCode.OK


@app.command("schema", cls=Command)
def schema() -> None:
    """Print the JSON schema of a config, for editors."""
    from cluster.config.load import config_schema

    output.print_json(config_schema())


@app.command("show", cls=Command)
def show(file: File, json: Json = False) -> None:
    """Print the config that is in force: the file, with every default filled in."""
    from cluster.config.in_force import in_force
    from deployments.cli.config_files import load_config

    config = in_force(load_config(file))
    if json:
        output.print_json(config)
        return
    import yaml

    typer.echo(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), nl=False)


@app.command("apply", cls=Command)
def apply(
    file: File,
    state_dir: ConfigStateDir = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", metavar=FLAG, help="Only show what would change.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            min=1,
            metavar="SECONDS",
            help="Give up loading a model after so long. Default: its start_timeout_s.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> ExitCode:
    """Bring a config into force in the running cluster, without a restart and without losing a request.

    Rules, contracts and limits change at once. A model whose engine changes is loaded anew beside the old one, takes over, and the
    old one finishes what it has; both must fit. If anything fails, the config before stays in force.
    """
    from deployments.cli.apply import ApplyOptions
    from deployments.cli.apply import apply as bring_into_force

    return bring_into_force(ApplyOptions(file, state_dir, dry_run, timeout, json))
