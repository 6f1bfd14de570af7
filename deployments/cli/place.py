"""Finds the cluster that a command is about: its state directory, its state, its config, its URL."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.cli.errors import CliError, ExitCode
from deployments.head.state import (
    ClusterState,
    DamagedStateError,
    Phase,
    load_state,
    make_state_directory,
    state_directory,
)

if TYPE_CHECKING:
    from cluster.config.cluster import ClusterConfig

HEAD_MODULE = "deployments.head"
"""What runs as the head process; the command line of a process tells it from others."""


@dataclass(frozen=True, slots=True)
class Place:
    """A state directory, and how the user came to it."""

    state_dir: Path
    named: bool
    """Whether --state-dir has to name it: a command without the option, and without the config, looks elsewhere."""

    @property
    def state(self) -> ClusterState | None:
        """The cluster whose head process runs there; None if there is none."""
        state = self.noted
        return state if state is not None and head_runs(state) else None

    @property
    def noted(self) -> ClusterState | None:
        """What the last head process wrote, whether it runs or not. Raises `CliError` if the file is damaged."""
        try:
            return load_state(self.state_dir)
        except DamagedStateError as error:
            raise _damaged(self, error) from None

    def require_state(self) -> ClusterState:
        """The running cluster. Raises `CliError` that says how to start one."""
        state = self.state
        if state is None:
            raise not_running(self)
        return state

    def command(self, arguments: str) -> str:
        """A `pointsman` command as the user would type it for this place."""
        named = f" --state-dir {shlex.quote(str(self.state_dir))}" if self.named else ""
        return f"{program()} {arguments}{named}"


def find_place(state_dir: Path | None, config: ClusterConfig | None = None) -> Place:
    """The state directory in force: the option, `$POINTSMAN_STATE_DIR`, the config's (where one is read), the user's."""
    if state_dir is not None:
        chosen = state_dir.expanduser().absolute()
    else:
        chosen = state_directory(config.ray.state_dir if config is not None else None)
    return Place(chosen, named=chosen != state_directory(None))


def require_state_directory(path: Path) -> None:
    """Make the state directory if need be. Raises `CliError` if that is impossible, or nothing can be written there."""
    remedy = "Name another with --state-dir or $POINTSMAN_STATE_DIR."
    try:
        make_state_directory(path)
    except OSError as error:
        raise CliError(f"the state directory {path} cannot be made: {error.strerror}", remedy) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise CliError(f"the state directory {path} is not writable for this user", remedy)


def head_runs(state: ClusterState) -> bool:
    """Whether the head process of `state` still runs, and its number was not given to another process since."""
    if not state.alive:
        return False
    try:
        command = Path(f"/proc/{state.pid}/cmdline").read_bytes()
    except OSError:
        return False
    return HEAD_MODULE.encode() in command


def _damaged(place: Place, error: DamagedStateError) -> CliError:
    """Without the file the processes of the cluster cannot be told from others, so nothing is ended."""
    message = f"the state file {error.path} is damaged"
    if error.held:
        who = f"process {error.holder}" if error.holder is not None else "a process of this machine"
        end = f"`kill {error.holder}`" if error.holder is not None else "SIGTERM"
        return CliError(
            f"{message}; a cluster runs with it, its head is {who}",
            f"The head writes the file anew every few seconds: try again. Or end the head with {end}; it cleans up.",
        )
    return CliError(
        f"{message}, and no head process runs with it",
        f"Look for processes left behind with `ps -ef | grep ray`, end them, remove the file, then `{place.command('up')}`.",
    )


def not_running(place: Place) -> CliError:
    """Why there is nothing to talk to, and how to change that."""
    state = place.noted
    start = f"Start one with `{place.command('up')}`."
    if state is None:
        return CliError(f"no cluster is running (state directory {place.state_dir})", start, ExitCode.REFUSED)
    if state.phase is Phase.FAILED:
        message = f"no cluster is running; the last one failed: {state.message or 'see its logs'}"
        return CliError(message, start, ExitCode.REFUSED)
    return CliError(
        f"no cluster is running; the head process {state.pid} of the last one ended without cleaning up",
        f"Remove what it left with `{place.command('down')}`, then start again with `{place.command('up')}`.",
        ExitCode.REFUSED,
    )


def program() -> str:
    """How this command was called, in the shortest way that works from here."""
    name = "pointsman"
    called = Path(sys.argv[0])
    if called.name != name:
        return name
    found = shutil.which(name)
    if found is not None and Path(found).absolute() == called.absolute():
        return name
    try:
        return str(called.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(called)
