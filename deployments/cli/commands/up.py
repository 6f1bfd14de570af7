"""`pointsman up`."""

from __future__ import annotations

from deployments.cli.errors import ExitCode
from deployments.cli.options import Config, ConfigStateDir, Foreground, Json, StartTimeout


def up(
    config: Config = None,
    state_dir: ConfigStateDir = None,
    foreground: Foreground = False,
    timeout: StartTimeout = None,
    json: Json = False,
) -> ExitCode:
    """Start a cluster: build the models if need be, load them, say when it is ready.

    Ctrl-C on the way brings down what was started. A model that fails is named, and the others serve.
    """
    from deployments.cli.config_files import default_config
    from deployments.cli.launch import LaunchOptions, launch

    return launch(LaunchOptions(config or default_config(), state_dir, foreground, timeout, json))
