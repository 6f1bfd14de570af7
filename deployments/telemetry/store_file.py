"""The file behind the trace store: opening it, its schema, and putting a broken one aside.

Several processes open the same file at once; a lock file beside it makes opening, checking and replacing it one step.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from deployments.telemetry.log_format import log_event
from deployments.telemetry.log_safety import Safe

logger = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
KEPT_QUARANTINED: Final = 3

_SCHEMA: Final = (
    """CREATE TABLE spans (
        trace_id TEXT NOT NULL, span_id TEXT NOT NULL, parent_id TEXT, name TEXT NOT NULL, kind TEXT NOT NULL,
        start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL, status TEXT NOT NULL, status_message TEXT NOT NULL,
        process TEXT NOT NULL, instance TEXT NOT NULL, attributes TEXT NOT NULL, events TEXT NOT NULL,
        links TEXT NOT NULL, PRIMARY KEY (trace_id, span_id)) WITHOUT ROWID""",
    # One row a trace, so that listing and pruning never scan the spans.
    """CREATE TABLE traces (
        trace_id TEXT PRIMARY KEY, start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL,
        spans INTEGER NOT NULL, errors INTEGER NOT NULL) WITHOUT ROWID""",
    "CREATE INDEX traces_by_end ON traces (end_ns)",
)
_BROKEN_CODES: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

Connect = Callable[[Path, float], sqlite3.Connection]
"""Makes a connection to a file that waits the given seconds for other writers."""


class StoreUnavailableError(RuntimeError):
    """The trace store cannot take or give anything now. The message says why and what to do."""


class BrokenStoreError(StoreUnavailableError):
    """The file is no trace store of this version, or damaged."""


def connect(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """A connection in autocommit mode; transactions are begun explicitly."""
    return sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)


def open_for_writing(path: Path, busy_timeout_s: float, make: Connect = connect) -> sqlite3.Connection:
    """Open the store, made new if there is none; a damaged or foreign file is put aside first.

    Raises `StoreUnavailableError` if that is impossible (permissions, disk full, locked).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with opening_lock(path, busy_timeout_s):
            try:
                return _open_checked(path, busy_timeout_s, make)
            except BrokenStoreError as error:
                aside = quarantine(path)
                log_event(logger, logging.ERROR, "trace_store_put_aside", cause=Safe(error), moved_to=Safe(aside.name))
                return _open_checked(path, busy_timeout_s, make)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StoreUnavailableError(f"{path}: {reason}; make its directory writable and free some space") from error
    except sqlite3.Error as error:
        raise unavailable(path, error) from error


def unavailable(path: Path, error: sqlite3.Error) -> StoreUnavailableError:
    """`error` as ours: `BrokenStoreError` if the file itself is damaged."""
    code = getattr(error, "sqlite_errorcode", None)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    # Extended codes carry the kind of error in their low byte.
    if isinstance(code, int) and code & 0xFF in _BROKEN_CODES:
        return BrokenStoreError(f"{path}: {name}")
    remedy = {
        "SQLITE_FULL": "free some space on its disk",
        "SQLITE_BUSY": "another process holds it for long; it is tried again",
    }.get(name, "check the file's permissions and its disk")
    return StoreUnavailableError(f"{path}: {name}; {remedy}")


def quarantine(path: Path) -> Path:
    """Rename the file with its journal, keeping the last few such; returns the new name."""
    aside = path.with_name(f"{path.name}.broken-{time.time_ns()}")
    path.replace(aside)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").replace(f"{aside}{suffix}")
    earlier = sorted(path.parent.glob(f"{path.name}.broken-*[0-9]"))
    for old in earlier[:-KEPT_QUARANTINED]:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{old}{suffix}").unlink(missing_ok=True)
    return aside


def file_identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of the file, None if it is gone: tells a writer that the file was replaced under it."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def opening_lock(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock beside a file while it is opened, checked, replaced. Raises `StoreUnavailableError`."""
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreUnavailableError(f"{path}: another process is opening it; it is tried again") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _open_checked(path: Path, busy_timeout_s: float, make: Connect) -> sqlite3.Connection:
    # Made here first, so that nobody else can read it: spans may hold content where the operator asked for that.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = make(path, busy_timeout_s)
    try:
        _check(path, connection)
        connection.execute("PRAGMA journal_mode = WAL")
        # No wait for the disk on each commit: an operating system crash may cost the last traces, never the file.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA journal_size_limit = 4194304")
        _create_schema(connection)
    except sqlite3.Error as error:
        connection.close()
        raise unavailable(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _check(path: Path, connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if version == 0 and tables == 0:
        return
    if version != SCHEMA_VERSION:
        raise BrokenStoreError(f"{path}: schema version {version}, this release writes {SCHEMA_VERSION}")
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise BrokenStoreError(f"{path}: integrity check failed")


def _create_schema(connection: sqlite3.Connection) -> None:
    if connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
