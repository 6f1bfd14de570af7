"""The ends of logs, for the moment when something has failed."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from deployments.paths import head_output_path, logs_path

_READ_BYTES = 65_536
_UNSAFE = re.compile(r"[^a-z0-9_.]+")


class LogLine(msgspec.Struct, frozen=True):
    """What is used of a line of a structured log."""

    level: str = "info"
    message: str = ""
    exception: list[str] = []


def model_log(state_dir: Path, model: str) -> Path | None:
    """The newest log of a replica of the model, None if it has written none."""
    return _newest(state_dir, f"replica-{model}")


def head_log(state_dir: Path) -> Path | None:
    """The newest log of a head process."""
    return _newest(state_dir, "head")


def ingress_log(state_dir: Path) -> Path | None:
    """The newest log of an ingress."""
    return _newest(state_dir, "ingress")


def head_output(state_dir: Path, lines: int) -> tuple[Path, list[str]]:
    """The file with what the head process printed, and its last lines."""
    path = head_output_path(state_dir)
    return path, _lines(path)[-lines:]


def last_errors(path: Path, lines: int) -> list[str]:
    """The last errors and warnings in a structured log, with what is known of their causes."""
    found: list[str] = []
    for text in _lines(path):
        try:
            line = msgspec.json.decode(text, type=LogLine)
        except msgspec.MsgspecError:
            continue
        if line.level in ("error", "critical", "warning"):
            found.append(line.message)
            found.extend(f"  {part}" for part in line.exception)
    return found[-lines:]


def _newest(state_dir: Path, process: str) -> Path | None:
    name = _UNSAFE.sub("-", process.lower()).strip("-")
    found = [
        path for path in logs_path(state_dir).glob(f"{name}-*.jsonl") if path.stem.removeprefix(f"{name}-").isdigit()
    ]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _READ_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()]
