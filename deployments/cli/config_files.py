"""Reads cluster configs for commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deployments.cli.errors import CliError, ExitCode
from deployments.cli.place import Place

if TYPE_CHECKING:
    from cluster.config.cluster import ClusterConfig

# Beside the packages, in a clone and in a wheel alike.
_INFRA = Path(__file__).resolve().parents[2] / "infra"


def default_config() -> Path:
    """The packaged config of the embedded models."""
    return _INFRA / "clusters" / "local.yaml"


def read_text(path: Path) -> str:
    """The file's text. Raises `CliError`."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CliError(f"{path} is not a text file in UTF-8", code=ExitCode.USAGE) from None
    except OSError as error:
        remedy = f"A config to start from is {default_config()}."
        raise CliError(f"{path} cannot be read: {error.strerror}", remedy, ExitCode.USAGE) from None


def load_config(path: Path) -> ClusterConfig:
    """The checked config. Raises `CliError` that lists every mistake."""
    from cluster.config.load import ConfigError, parse_config

    text = read_text(path)
    try:
        return parse_config(text, str(path))
    except ConfigError as error:
        remedy = "Every field is explained in docs/configuration.md; `pointsman config schema` prints them too."
        raise CliError(str(error), remedy, ExitCode.USAGE) from None


def config_in_force(config: Path | None, place: Place) -> Path:
    """The file that the user named, else that of the running cluster, else the packaged one."""
    if config is not None:
        return config
    state = place.state
    if state is not None and Path(state.config_path).is_file():
        return Path(state.config_path)
    return default_config()
