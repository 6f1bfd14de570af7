"""`pointsman render`."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.cli import output
from deployments.cli.errors import CliError, ExitCode

if TYPE_CHECKING:
    from cluster.config.cluster import ClusterConfig


class Target(StrEnum):
    """What takes the output."""

    SERVE = "serve"
    KUBERAY = "kuberay"
    HELM = "helm"


def render(
    file: Annotated[Path, typer.Argument(metavar="CONFIG", help="A cluster's config (YAML).", show_default=False)],
    target: Annotated[
        Target,
        typer.Option(
            "--target",
            "-t",
            help="serve: a Serve config for any Ray cluster; kuberay: all objects for Kubernetes; helm: a chart.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder to write to, made if need be. Default: print; a chart needs a folder.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write what a Ray cluster, Kubernetes or Helm runs a config's cluster from. What is unsafe there is refused, and how to mend it said."""
    config = _checked(file, target)
    if target is Target.HELM:
        from deployments.render.chart import write_chart

        if out is None:
            raise CliError("a chart is more than one file", "Name a folder with --out DIR.", ExitCode.USAGE)
        _write(lambda: write_chart(config, out), out)
        return
    text = _text(config, target)
    if out is None:
        typer.echo(text, nl=False)
        return
    path = out / f"{target.value}.yaml"

    def write() -> list[Path]:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return [path]

    _write(write, out)


def _text(config: ClusterConfig, target: Target) -> str:
    from deployments.render.rayservice import manifests
    from deployments.render.serve_config import serve_config
    from deployments.render.text import dump, dump_all

    return dump(serve_config(config)) if target is Target.SERVE else dump_all(manifests(config))


def _checked(file: Path, target: Target) -> ClusterConfig:
    from cluster.config.check_deployment import check_deployment
    from cluster.config.load import ConfigError, parse_config
    from deployments.cli.config_files import read_text

    text = read_text(file)
    try:
        return parse_config(text, str(file), None if target is Target.SERVE else check_deployment)
    except ConfigError as error:
        remedy = "docs/deploy.md says what a config for Kubernetes needs; every field is in docs/configuration.md."
        raise CliError(str(error), remedy, ExitCode.USAGE) from None


def _write(write: Callable[[], list[Path]], folder: Path) -> None:
    """Write, and say what. Raises `CliError` for a folder that takes nothing."""
    try:
        paths = write()
    except OSError as error:
        raise CliError(f"{folder} cannot be written: {error.strerror}", "Name another with --out.") from None
    for path in paths:
        output.print_line(str(path))
