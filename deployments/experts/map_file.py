"""The file with the pool map that somebody else replaces, and the thread of a trunk that looks at it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from cluster.experts.pools import PoolMap, PoolMapError, parse_pool_map
from deployments.experts.trunk_files import TAKEN
from deployments.telemetry.log_safety import Safe

_log = logging.getLogger(__name__)

LOOK_S: Final = 0.2
"""Seconds between two looks at the file."""
AGAIN_S: Final = 1.0
"""Seconds until a map that was refused is tried again: its replicas may be reached by then."""


class MapFile:
    """Reads the map at once, and looks for newer ones once it is told what to do with them.

    Raises `OSError` or `PoolMapError` if there is none to begin with.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._signature()
        self.first = parse_pool_map(path.read_bytes())
        self.refused = ""
        """Why the newest map in the file was not taken on; empty: it was."""
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, take: Callable[[PoolMap], None]) -> None:
        """Have a thread call `take` with every map that the file has from now on. It raises `PoolMapError` for one that it refuses."""
        self._thread = threading.Thread(target=self._watch, args=(take,), name="pool-map", daemon=True)
        self._thread.start()

    def taken(self, version: int) -> None:
        """Leave word beside the map that the engine works by a version of it."""
        with suppress(OSError):
            self._path.with_suffix(TAKEN).write_text(str(version), encoding="ascii")

    def close(self) -> None:
        """Look no more; returns when the thread has ended, which may have to finish a connection first."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, take: Callable[[PoolMap], None]) -> None:
        again = 0.0
        while not self._closed.wait(LOOK_S):
            try:
                signature = self._signature()
                if signature == self._seen and not (self.refused and time.monotonic() >= again):
                    continue
                self._seen = signature
                take(parse_pool_map(self._path.read_bytes()))
                refused = ""
            except (OSError, PoolMapError) as error:
                refused = str(error)
                again = time.monotonic() + AGAIN_S
            if refused and refused != self.refused:
                _log.warning("a pool map was not taken on: %s", Safe(refused))
            self.refused = refused

    def _signature(self) -> tuple[int, int, int]:
        """Differs once the file was replaced. Raises `OSError` if it is gone."""
        found = self._path.stat()
        return found.st_ino, found.st_mtime_ns, found.st_size
