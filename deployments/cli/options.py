"""Options that several commands share, each with one wording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from deployments.cli.groups import FLAG

KEY_VARIABLE = "POINTSMAN_API_KEY"
URL_VARIABLE = "POINTSMAN_URL"


def _state_dir(default: str) -> object:
    return typer.Option(
        "--state-dir",
        metavar="DIR",
        help=f"Where the cluster keeps its state, keys, traces and logs. Default: {default}.",
        show_default=False,
    )


StateDir: TypeAlias = Annotated[
    Path | None,
    _state_dir(
        "$POINTSMAN_STATE_DIR, then ~/.local/state/pointsman; a cluster whose config sets ray.state_dir has to be named"
    ),
]
"""For commands that look for a cluster and read no config to find it."""
ConfigStateDir: TypeAlias = Annotated[
    Path | None, _state_dir("$POINTSMAN_STATE_DIR, then ray.state_dir of --config, then ~/.local/state/pointsman")
]
OwnStateDir: TypeAlias = Annotated[Path | None, _state_dir("$POINTSMAN_STATE_DIR, then ~/.local/state/pointsman")]
"""For a command that makes the config itself."""
Config: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The cluster's config (YAML). Default: the packaged infra/clusters/local.yaml.",
        show_default=False,
    ),
]
RunningConfig: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The cluster's config (YAML). Default: that of the running cluster, else the packaged one.",
        show_default=False,
    ),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", metavar=FLAG, help="Print JSON on stdout, for scripts.")]
ApiKey: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--key", envvar=KEY_VARIABLE, metavar="KEY", help="API key, where the cluster asks for one.", show_default=False
    ),
]
Url: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar=URL_VARIABLE,
        metavar="URL",
        help="Where the cluster answers. Default: the cluster of the state directory.",
        show_default=False,
    ),
]
Foreground: TypeAlias = Annotated[
    bool, typer.Option("--foreground", metavar=FLAG, help="Stay until Ctrl-C, then bring everything down.")
]
StartTimeout: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        min=1,
        metavar="SECONDS",
        help="Give up starting after so long. Default: the longest start_timeout_s of a model, and two minutes.",
        show_default=False,
    ),
]
