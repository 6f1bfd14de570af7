"""`pointsman models`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.cli import output
from deployments.cli.errors import CliError, ExitCode
from deployments.cli.groups import Command
from deployments.cli.options import Json, RunningConfig, StateDir

if TYPE_CHECKING:
    from cluster.config.cluster import ClusterConfig
    from deployments.cli.obtain import Failed

app = typer.Typer(help="List the models of a config, build them ahead, check their files.", invoke_without_command=True)

Names = Annotated[
    list[str] | None, typer.Argument(metavar="NAME", help="Models of the config; all of them.", show_default=False)
]


@app.callback()
def models(
    context: typer.Context, config: RunningConfig = None, state_dir: StateDir = None, json: Json = False
) -> None:
    """List the models of a config, build them ahead, check their files."""
    if context.invoked_subcommand is None:
        list_models(config, state_dir, json)


@app.command("list", cls=Command)
def list_models(config: RunningConfig = None, state_dir: StateDir = None, json: Json = False) -> None:
    """List the models of a config: what each is, and whether its files are here."""
    from deployments.cli.model_files import files_of

    file, in_force = _config(config, state_dir)
    rows = [(name, model, files_of(model)) for name, model in in_force.models.items()]
    if json:
        listed = [
            {
                "name": name,
                "kind": model.kind.value,
                "roles": list(model.roles),
                "source": model.source,
                "engine": model.engine.type.value,
                "files": files.state,
                "path": None if files.path is None else str(files.path),
                "bytes": files.size_bytes,
            }
            for name, model, files in rows
        ]
        output.print_json({"config": str(file), "models": listed})
        return
    table = output.table("model", "kind", "roles", "source", "engine", "files", "size", right=("size",))
    for name, model, files in rows:
        size = output.size(files.size_bytes) if files.size_bytes is not None else ""
        source = model.source or (model.upstream.base_url if model.upstream is not None else "")
        table.add_row(
            name, model.kind.value, ", ".join(model.roles), source, model.engine.type.value, files.state, size
        )
    output.stdout().print(table)
    output.remark((f"config: {file}", "dim"))


@app.command("build", cls=Command)
def build(
    names: Names = None, config: RunningConfig = None, state_dir: StateDir = None, json: Json = False
) -> ExitCode:
    """Build or download the files of models ahead of the first start."""
    from deployments.cli.obtain import obtain_models
    from deployments.cli.progress import Waiting

    sources = _sources(_config(config, state_dir)[1], names)
    with Waiting("Preparing the models") as waiting:
        paths, failed = obtain_models(sources, lambda work: waiting.part(work.model, work.message, work.fraction))
    return _report("ready", paths, failed, json)


@app.command("verify", cls=Command)
def verify(
    names: Names = None, config: RunningConfig = None, state_dir: StateDir = None, json: Json = False
) -> ExitCode:
    """Compare every file of models with its checksum; builds what is missing."""
    from deployments.cli.build_messages import Job
    from deployments.cli.obtain import run_job
    from deployments.cli.progress import Waiting

    sources = _sources(_config(config, state_dir)[1], names)
    with Waiting("Checking the models") as waiting:
        for name in sources:
            waiting.part(name, "reading its files")
        job = Job(sources, verify=True)
        paths, failed = run_job(job, lambda work: waiting.part(work.model, work.message, work.fraction))
    return _report("intact", paths, failed, json)


def _config(config: Path | None, state_dir: Path | None) -> tuple[Path, ClusterConfig]:
    from deployments.cli.config_files import config_in_force, load_config
    from deployments.cli.place import find_place

    file = config_in_force(config, find_place(state_dir))
    return file, load_config(file)


def _sources(config: ClusterConfig, names: list[str] | None) -> dict[str, str]:
    from deployments.cli.obtain import sources_of

    sources = sources_of(config)
    if not names:
        return sources
    unknown = [name for name in names if name not in config.models]
    if unknown:
        raise CliError(
            f"the config has no model {', '.join(unknown)}",
            f"Its models are {', '.join(config.models)}.",
            ExitCode.USAGE,
        )
    return {name: sources[name] for name in names if name in sources}


def _report(state: str, paths: dict[str, Path], failed: tuple[Failed, ...], as_json: bool) -> ExitCode:
    if as_json:
        output.print_json(
            {
                "models": {name: str(path) for name, path in paths.items()},
                "failed": {one.model: {"problem": one.problem, "remedy": one.remedy} for one in failed},
            }
        )
    else:
        for name, path in paths.items():
            output.print_line(("✓ ", "green"), f"{name}  {state}  ", (str(path), "dim"))
        for one in failed:
            output.print_line(("✗ ", "red"), f"{one.model}  {one.problem}")
            output.print_line(f"    {one.remedy}")
    return ExitCode.FAILED if failed else ExitCode.OK
