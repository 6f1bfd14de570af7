"""Starts the head process of a cluster and tells one launch from another."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from deployments.cli.place import HEAD_MODULE
from deployments.head.state import ClusterState, make_state_directory, read_state
from deployments.paths import head_output_path

if TYPE_CHECKING:
    from cluster.config.cluster import ClusterConfig

_LAUNCH_FILE = "launch.json"
_PR_SET_PDEATHSIG = 1


class Launch(msgspec.Struct, frozen=True):
    """What a head process was started with."""

    pid: int
    config_hash: str


def config_hash(config: ClusterConfig) -> str:
    """The same for two files that mean the same."""
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()


def note_launch(state_dir: Path, pid: int, hash_in_force: str) -> None:
    """Write down which config the head process has in force, for an `up` that comes later."""
    (state_dir / _LAUNCH_FILE).write_bytes(msgspec.json.encode(Launch(pid, hash_in_force)))


def launched_with(state_dir: Path, state: ClusterState) -> str | None:
    """Hash of the config that the running head was started with, or changed to; None if it was not started by this command."""
    try:
        launch = msgspec.json.decode((state_dir / _LAUNCH_FILE).read_bytes(), type=Launch)
    except (OSError, msgspec.MsgspecError):
        return None
    return launch.config_hash if launch.pid == state.pid else None


class HeadProcess:
    """A head process that this process started."""

    def __init__(self, process: subprocess.Popen[bytes], state_dir: Path) -> None:
        self._process = process
        self._state_dir = state_dir

    @classmethod
    def start(
        cls,
        config: ClusterConfig,
        config_path: Path,
        state_dir: Path,
        model_paths: Mapping[str, Path | None],
        *,
        bound: bool,
    ) -> HeadProcess:
        """Start it in a session of its own, so that Ctrl-C and a closed terminal do not reach it.

        `bound` ends it when this process ends, however that happens.
        """
        make_state_directory(state_dir)
        output = head_output_path(state_dir)
        if output.exists():
            output.replace(output.with_name(output.name + ".1"))
        paths = json.dumps({name: None if path is None else str(path) for name, path in model_paths.items()})
        command = [sys.executable, "-m", HEAD_MODULE, "--config", str(config_path.absolute())]
        command += ["--state-dir", str(state_dir), "--model-paths", paths]
        # Opened for the user alone from the start: Ray prints what it likes.
        with os.fdopen(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=_end_with_parent if bound else None,  # noqa: PLW1509 - no thread runs yet
            )
        try:
            note_launch(state_dir, process.pid, config_hash(config))
        except BaseException:
            # A disk that is full, or Ctrl-C at this moment: nobody would know of the process any more. It has started
            # nothing yet, for it takes longer than this to import what it needs.
            process.kill()
            process.wait()
            raise
        return cls(process, state_dir)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """How it ended, None while it runs."""
        return self._process.poll()

    def release(self) -> None:
        """Wait for it no more, whether it has ended or goes on alone."""
        if self._process.poll() is None:
            # Said to be ended, because Popen would otherwise warn that nobody waits for it.
            self._process.returncode = 0

    @property
    def state(self) -> ClusterState | None:
        """What it last wrote down, None before the first time."""
        state = read_state(self._state_dir)
        return state if state is not None and state.pid == self.pid else None

    @property
    def state_dir(self) -> Path:
        """Where it writes."""
        return self._state_dir


class OtherHead:
    """A head process that somebody else started, seen in the same way."""

    exit_status: int | None = None

    def __init__(self, state: ClusterState, state_dir: Path) -> None:
        self.pid = state.pid
        self.state_dir = state_dir
        self._last = state

    @property
    def state(self) -> ClusterState | None:
        """What it last wrote down."""
        state = read_state(self.state_dir)
        if state is not None and state.pid == self.pid:
            self._last = state
        if not self._last.alive:
            self.exit_status = -1
        return self._last


def _end_with_parent() -> None:
    """Between fork and exec: ask the kernel for SIGTERM when the parent ends, on which the head brings all down."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
