"""Log files that cannot fill a disk: each process writes its own, all of a directory together are bounded."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_NAME: Final = re.compile(r"[a-z0-9_.-]+-(?P<pid>\d+)\.jsonl(?:\.1)?")
_UNSAFE: Final = re.compile(r"[^a-z0-9_.]+")


class BoundedLogFile:
    """`<directory>/<process>-<pid>.jsonl`, begun anew at `max_bytes` with the previous part kept beside it as `.1`.

    Each time a part begins, the oldest files of processes that are gone leave until the directory holds at most
    `max_total_bytes`.
    """

    def __init__(self, directory: Path, process: str, *, max_bytes: int, max_total_bytes: int) -> None:
        self._directory = directory
        self.path = directory / f"{_UNSAFE.sub('-', process.lower()).strip('-')}-{os.getpid()}.jsonl"
        self._max_bytes = max_bytes
        self._max_total_bytes = max_total_bytes
        self._descriptor: int | None = None
        self._size = 0

    def write(self, lines: Sequence[str]) -> int:
        """Append the lines; returns how many could not be written (disk full, no permission). Never raises."""
        written = 0
        try:
            for line in lines:
                data = f"{line}\n".encode()
                if self._descriptor is None or self._size + len(data) > self._max_bytes:
                    self._begin()
                self._append(data)
                written += 1
        except OSError:
            self.close()
        return len(lines) - written

    def close(self) -> None:
        """Close the file. Idempotent; a later `write` goes on with it."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None

    def _begin(self) -> None:
        again = self._descriptor is not None
        self.close()
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if again:
            self.path.replace(f"{self.path}.1")
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._descriptor).st_size
        prune_directory(self._directory, self._max_total_bytes)

    def _append(self, data: bytes) -> None:
        if self._descriptor is None:
            raise OSError("log file is closed")
        left = memoryview(data)
        while left:
            left = left[os.write(self._descriptor, left) :]
        self._size += len(data)


def prune_directory(directory: Path, max_total_bytes: int) -> None:
    """Delete the oldest log files of ended processes until all log files hold at most `max_total_bytes`."""
    files: list[tuple[float, int, Path, int]] = []
    for entry in directory.iterdir():
        match = _NAME.fullmatch(entry.name)
        if match is None:
            continue
        with contextlib.suppress(FileNotFoundError):
            status = entry.stat()
            files.append((status.st_mtime, status.st_size, entry, int(match["pid"])))
    total = sum(size for _, size, _, _ in files)
    for _, size, path, pid in sorted(files):
        if total <= max_total_bytes:
            return
        if not _alive(pid):
            path.unlink(missing_ok=True)
            total -= size


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
