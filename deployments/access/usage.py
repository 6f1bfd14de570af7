"""What each key has used: counted in memory, added to a SQLite file off the request path, read by the command line."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import quote

_log = logging.getLogger(__name__)

MAX_PENDING_KEYS: Final = 100_000
"""Keys whose counts wait to be written, at most; with a disk that stays full, those of further keys are lost."""

_BUSY_S: Final = 2.0
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS usage (
    key_id TEXT PRIMARY KEY,
    requests INTEGER NOT NULL,
    rejected INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    last_used REAL NOT NULL
) WITHOUT ROWID
"""
_ADD: Final = """
INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (key_id) DO UPDATE SET
    requests = requests + excluded.requests,
    rejected = rejected + excluded.rejected,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens,
    last_used = max(last_used, excluded.last_used)
"""
_READ: Final = "SELECT key_id, requests, rejected, prompt_tokens, completion_tokens, last_used FROM usage"


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """What one key has used since it was made."""

    requests: int = 0
    """Requests admitted."""
    rejected: int = 0
    """Requests that got an error: refused here, failed, refused by the engine, or a stream that broke."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    last_used: float = 0.0
    """Seconds since 1970, 0 if never."""

    def __add__(self, other: KeyUsage) -> KeyUsage:
        """The sum of two periods."""
        return KeyUsage(
            self.requests + other.requests,
            self.rejected + other.rejected,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            max(self.last_used, other.last_used),
        )


class UsageBook:
    """Counts in memory; `flush` adds what is new to the file. Several processes may share one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._pending: dict[str, KeyUsage] = {}
        self._written: Mapping[str, KeyUsage] = {}
        self._failing = False

    def add(self, key_id: str, usage: KeyUsage) -> None:
        """Count something that happened just now. Takes a microsecond."""
        with self._lock:
            if key_id in self._pending or len(self._pending) < MAX_PENDING_KEYS:
                self._pending[key_id] = self._pending.get(key_id, KeyUsage()) + replace(usage, last_used=time.time())

    def of(self, key_id: str) -> KeyUsage:
        """What a key has used, as of the last `flush` plus what this process has counted since."""
        with self._lock:
            return self._written.get(key_id, KeyUsage()) + self._pending.get(key_id, KeyUsage())

    def flush(self) -> bool:
        """Write what is new; blocks for as long as the disk takes. False if it could not: it is kept and tried again.

        A file that is no usage database is put aside under another name, and a new one begun.
        """
        with self._lock:
            batch, self._pending = self._pending, {}
        try:
            written = self._write(batch)
        except (sqlite3.Error, OSError) as error:
            with self._lock:
                for key_id, usage in batch.items():
                    self._pending[key_id] = usage + self._pending.get(key_id, KeyUsage())
            if not self._failing:
                _log.error("usage cannot be written, it is kept in memory: %s", type(error).__name__)
            self._failing = True
            return False
        self._failing = False
        with self._lock:
            self._written = written
        return True

    def _write(self, batch: Mapping[str, KeyUsage]) -> Mapping[str, KeyUsage]:
        try:
            return _add(self._path, batch)
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", None) not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                raise
            aside = self._path.with_name(f"{self._path.name}.damaged-{int(time.time())}-{os.getpid()}")
            _log.error("the usage file is damaged; it is kept as %s and a new one begun", aside.name)
            self._path.replace(aside)
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            return _add(self._path, batch)


def read_usage(path: Path) -> Mapping[str, KeyUsage]:
    """Usage by key id out of the file, empty if there is none. Raises `sqlite3.Error` for a damaged one."""
    if not path.is_file():
        return {}
    with contextlib.closing(
        sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=_BUSY_S)
    ) as connection:
        # A cluster that has just begun the file may not have come to its table yet.
        begun = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'usage'").fetchone()
        return _read(connection) if begun else {}


def _add(path: Path, batch: Mapping[str, KeyUsage]) -> Mapping[str, KeyUsage]:
    with _open(path) as connection, connection:
        connection.executemany(
            _ADD,
            [
                (key_id, use.requests, use.rejected, use.prompt_tokens, use.completion_tokens, use.last_used)
                for key_id, use in batch.items()
            ],
        )
        return _read(connection)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    with contextlib.closing(sqlite3.connect(path, timeout=_BUSY_S)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(_TABLE)
        yield connection


def _read(connection: sqlite3.Connection) -> Mapping[str, KeyUsage]:
    return {key_id: KeyUsage(*counts) for key_id, *counts in connection.execute(_READ)}
