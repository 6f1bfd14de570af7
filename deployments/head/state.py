"""The state directory: what the command line knows of a running cluster, and the lock that makes it the only one."""

from __future__ import annotations

import os
import shlex
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from deployments.head.locks import LockHeldError, lock_holder, take_lock
from deployments.processes import process_state

if TYPE_CHECKING:
    from cluster.config.cluster import ClusterConfig

STATE_VARIABLE = "POINTSMAN_STATE_DIR"

TEMPORARY_PREFIX = "pointsman-"
"""How the name of a cluster's temporary directory begins."""

_STATE_FILE = "cluster.json"
_CONFIG_FILE = "config-in-force.json"
_LOCK_FILE = "head.lock"


class Phase(StrEnum):
    """How far a cluster, or one model of it, has come."""

    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    """Some models serve, others failed."""
    FAILED = "failed"
    STOPPING = "stopping"


class ModelState(msgspec.Struct, frozen=True):
    """One model, as the head sees it."""

    phase: Phase
    message: str = ""
    ready_after_s: float | None = None
    """Seconds from the start of the head until the model answered."""


class ClusterState(msgspec.Struct, frozen=True):
    """What the head process writes down for others to read."""

    cluster_id: str
    pid: int
    config_path: str
    host: str
    port: int
    phase: Phase
    started_at: float
    """Unix time in seconds."""
    message: str = ""
    ray_address: str = ""
    ray_temp_dir: str = ""
    """Directory of Ray's sockets and logs; empty for a Ray cluster that is not our own."""
    ready_after_s: float | None = None
    models: dict[str, ModelState] = {}
    stop_s: float = 0.0
    """Seconds that it may take to stop by itself."""

    @property
    def url(self) -> str:
        """Base URL of the ingress."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def alive(self) -> bool:
        """Whether the head process still runs."""
        return process_state(self.pid) not in {"Z", "X", None}


class DamagedStateError(RuntimeError):
    """There is a state file, but it cannot be read as one."""

    def __init__(self, path: Path, held: bool, holder: int | None) -> None:
        super().__init__(f"{path} is damaged")
        self.path = path
        self.held = held
        """Whether a head process owns the directory."""
        self.holder = holder
        """Its process id, where it is known."""


class AlreadyRunningError(RuntimeError):
    """Another head process owns this state directory."""


def state_directory(configured: str | None) -> Path:
    """The state directory in force: `$POINTSMAN_STATE_DIR`, else the config's, else the user's."""
    chosen = os.environ.get(STATE_VARIABLE) or configured
    if chosen is None:
        base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        chosen = f"{base}/pointsman"
    return Path(chosen).expanduser().absolute()


def make_state_directory(path: Path) -> None:
    """Create the directory, readable by this user alone: it holds keys and traces."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def write_state(directory: Path, state: ClusterState) -> None:
    """Replace the state file in one step, so that a reader never sees half of it."""
    temporary = directory / f".{_STATE_FILE}.{os.getpid()}"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(state)))
    temporary.replace(directory / _STATE_FILE)


def write_config_in_force(directory: Path, config: ClusterConfig) -> None:
    """Keep the config that is in force, with all defaults, for whoever wants to change it."""
    from cluster.config.in_force import in_force

    temporary = directory / f".{_CONFIG_FILE}.{os.getpid()}"
    temporary.write_bytes(msgspec.json.encode(in_force(config)))
    temporary.replace(directory / _CONFIG_FILE)


def read_config_in_force(directory: Path) -> ClusterConfig | None:
    """The config that is in force; None if it is not written yet, or cannot be read."""
    from cluster.config.cluster import ClusterConfig

    try:
        return ClusterConfig.model_validate_json((directory / _CONFIG_FILE).read_bytes())
    except (OSError, ValueError):
        return None


def read_state(directory: Path) -> ClusterState | None:
    """The last state written, or None, also for a file that is damaged: `load_state` tells the two apart.

    Says nothing about whether the head still runs: see `ClusterState.alive`.
    """
    try:
        return load_state(directory)
    except DamagedStateError:
        return None


def load_state(directory: Path) -> ClusterState | None:
    """The last state written; None if there is none. Raises `DamagedStateError`."""
    path = directory / _STATE_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=ClusterState)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        note = lock_holder(directory / _LOCK_FILE)
        raise DamagedStateError(path, note is not None, int(note) if note and note.isdecimal() else None) from None


def remove_state(directory: Path) -> None:
    """Forget the cluster."""
    (directory / _STATE_FILE).unlink(missing_ok=True)


def lock_state(directory: Path) -> IO[str]:
    """Own the directory until the returned file is closed. Raises `AlreadyRunningError`."""
    try:
        return take_lock(directory / _LOCK_FILE, str(os.getpid()))
    except LockHeldError as error:
        state = read_state(directory)
        who = f"process {state.pid} at {state.url}" if state is not None else f"process {error.note or 'unknown'}"
        raise AlreadyRunningError(
            f"a cluster already runs with state directory {directory} ({who}); "
            f"stop it with `pointsman down --state-dir {shlex.quote(str(directory))}`, or give this one another --state-dir"
        ) from None
