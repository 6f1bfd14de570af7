"""How the command line hands a running head process a new config, and hears how far it is: two files in the state directory.

Files, because the directory is private to its user, and because a socket's path may be too long for it.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path

import msgspec

_REQUEST_FILE = "change-request.json"
_PROGRESS_FILE = "change-progress.json"


class ChangeRequest(msgspec.Struct, frozen=True):
    """A config that is to be in force."""

    id: str
    config: str
    """The config in full, as JSON, with all defaults."""
    config_path: str
    model_paths: dict[str, str | None]
    """Folder of each new or changed model's checkpoint, already built or downloaded."""
    timeout_s: float
    """Seconds that loading new replicas may take."""


class ChangePhase(StrEnum):
    """How far a change is."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    """Nothing has changed."""


class ChangeProgress(msgspec.Struct, frozen=True):
    """How far the change of that id is."""

    id: str
    phase: ChangePhase
    message: str = ""
    """What is being done; why it failed."""


def put_request(directory: Path, request: ChangeRequest) -> None:
    """Leave a request for the head."""
    _put(directory / _REQUEST_FILE, request)


def take_request(directory: Path) -> ChangeRequest | None:
    """The request that waits, if any; it is gone then. One that cannot be read is dropped."""
    path = directory / _REQUEST_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    path.unlink(missing_ok=True)
    try:
        return msgspec.json.decode(content, type=ChangeRequest)
    except msgspec.MsgspecError:
        return None


def withdraw_request(directory: Path) -> None:
    """Take back a request that the head has not taken."""
    (directory / _REQUEST_FILE).unlink(missing_ok=True)


def put_progress(directory: Path, progress: ChangeProgress) -> None:
    """Say how far a change is."""
    _put(directory / _PROGRESS_FILE, progress)


def read_progress(directory: Path, change_id: str) -> ChangeProgress | None:
    """How far that change is; None: nothing was said of it yet."""
    try:
        progress = msgspec.json.decode((directory / _PROGRESS_FILE).read_bytes(), type=ChangeProgress)
    except (OSError, msgspec.MsgspecError):
        return None
    return progress if progress.id == change_id else None


def _put(path: Path, content: msgspec.Struct) -> None:
    """In one step, so that nobody reads half of it, and for this user alone."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(msgspec.json.encode(content))
    temporary.replace(path)
