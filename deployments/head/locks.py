"""Lock files that say who holds them. The kernel frees a lock when its holder ends, however that happens."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO


class LockHeldError(RuntimeError):
    """Another process holds the lock; `note` is what it wrote about itself, possibly nothing."""

    def __init__(self, path: Path, note: str) -> None:
        super().__init__(f"{path} is held: {note}")
        self.note = note


def take_lock(path: Path, note: str) -> IO[str]:
    """Hold the lock until the returned file is closed. Raises `LockHeldError` and `OSError`."""
    # Not truncated when it is opened: the note may be another holder's.
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            raise LockHeldError(path, file.read().strip()) from None
    except OSError:
        file.close()
        raise
    file.truncate(0)
    file.write(note)
    file.flush()
    return file


def lock_holder(path: Path) -> str | None:
    """What the holder of the lock wrote about itself; None if nobody holds it."""
    try:
        file = path.open()
    except OSError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip()
        return None
