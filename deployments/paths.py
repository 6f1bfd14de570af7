"""Files inside the state directory. Everything that a cluster keeps on disk is named here."""

from __future__ import annotations

from pathlib import Path


def traces_path(state_dir: Path) -> Path:
    """The embedded trace store."""
    return state_dir / "traces.sqlite"


def records_path(state_dir: Path) -> Path:
    """The records database, unless it is on a server."""
    return state_dir / "records.sqlite"


def logs_path(state_dir: Path) -> Path:
    """The directory of structured logs."""
    return state_dir / "logs"


def usage_path(state_dir: Path) -> Path:
    """Usage per API key."""
    return state_dir / "usage.sqlite"


def head_output_path(state_dir: Path) -> Path:
    """What the head process and Ray print, for the case that it dies before it can log."""
    return state_dir / "head.out"
