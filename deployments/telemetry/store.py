"""The embedded trace store: one SQLite file that every process of a machine writes to.

Bounded by a number of spans; the traces with the oldest activity leave first. Nothing here is called on the request
path: the span processor's thread writes, and what cannot be written is dropped and counted there.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

from deployments.telemetry.rows import span_to_row
from deployments.telemetry.spans import StoredSpan
from deployments.telemetry.store_file import (
    BrokenStoreError,
    Connect,
    StoreUnavailableError,
    connect,
    file_identity,
    open_for_writing,
    unavailable,
)

logger = logging.getLogger(__name__)

_INSERT: Final = "INSERT OR IGNORE INTO spans VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_SUMMARISE: Final = """INSERT INTO traces VALUES (?, ?, ?, ?, ?) ON CONFLICT (trace_id) DO UPDATE SET
    start_ns = min(start_ns, excluded.start_ns), end_ns = max(end_ns, excluded.end_ns),
    spans = spans + excluded.spans, errors = errors + excluded.errors"""
_PRUNED_AT_ONCE: Final = 500


class TraceStore:
    """Writes spans. One instance a process; any number of processes a file."""

    def __init__(
        self,
        path: Path,
        max_spans: int,
        *,
        busy_timeout_s: float = 2.0,
        retry_after_s: float = 5.0,
        make: Connect = connect,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_spans` bounds the file, overshot by at most 2% per writing process between two prunings.

        After a failure to open, `retry_after_s` seconds pass before the next attempt.
        """
        self._path = path
        self._max_spans = max_spans
        self._busy_timeout_s = busy_timeout_s
        self._retry_after_s = retry_after_s
        self._make = make
        self._clock = clock
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._retry_at = float("-inf")
        self._why = ""
        self._prune_every = max(64, max_spans // 50)
        self._since_prune = 0

    def write(self, spans: Sequence[StoredSpan]) -> None:
        """Store the spans in one transaction: all or none. A span stored already is left as it is.

        Raises `StoreUnavailableError`; the next call tries again.
        """
        with self._lock:
            connection = self._open()
            try:
                _insert(connection, spans)
                self._since_prune += len(spans)
                if self._since_prune >= self._prune_every:
                    self._since_prune = 0
                    prune(connection, self._max_spans)
            except sqlite3.Error as error:
                raise self._failed(error) from error

    def close(self) -> None:
        """Close the file. Idempotent; a later `write` opens it again."""
        with self._lock:
            self._drop_connection()

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None:
            if file_identity(self._path) == self._identity:
                return self._connection
            # Another process put the file aside, or somebody deleted it: writing on would fill a file nobody reads.
            self._drop_connection()
        now = self._clock()
        if now < self._retry_at:
            raise StoreUnavailableError(self._why)
        try:
            self._connection = open_for_writing(self._path, self._busy_timeout_s, self._make)
        except StoreUnavailableError as error:
            self._retry_at, self._why = now + self._retry_after_s, str(error)
            raise
        self._identity = file_identity(self._path)
        return self._connection

    def _failed(self, error: sqlite3.Error) -> StoreUnavailableError:
        ours = unavailable(self._path, error)
        if isinstance(ours, BrokenStoreError):
            # Opening it again finds the damage and puts the file aside.
            self._drop_connection()
        return ours

    def _drop_connection(self) -> None:
        if self._connection is None:
            return
        try:
            self._connection.close()
        except sqlite3.Error:
            logger.warning("trace store could not be closed cleanly")
        self._connection = None


def prune(connection: sqlite3.Connection, max_spans: int) -> int:
    """Delete the traces with the oldest activity until 90% of `max_spans` are left; returns the spans deleted.

    Deletes in small transactions, so that other writers wait for a few milliseconds only. If a single trace holds more
    than all that may be kept, its oldest spans go.
    """
    total = connection.execute("SELECT coalesce(sum(spans), 0) FROM traces").fetchone()[0]
    if total <= max_spans:
        return 0
    wanted = max_spans - max_spans // 10
    excess = total - wanted
    deleted = 0
    while deleted < excess:
        oldest = connection.execute("SELECT trace_id, spans FROM traces ORDER BY end_ns LIMIT 100").fetchall()
        chosen: list[str] = []
        size = 0
        for trace_id, spans in oldest:
            if spans > wanted or (chosen and size + spans > _PRUNED_AT_ONCE):
                break
            chosen.append(trace_id)
            size += spans
            if deleted + size >= excess:
                break
        removed = _delete_traces(connection, chosen) if chosen else _trim(connection, oldest, excess - deleted)
        if removed == 0:
            break
        deleted += removed
    return deleted


def _insert(connection: sqlite3.Connection, spans: Sequence[StoredSpan]) -> None:
    by_trace = groupby(sorted(spans, key=lambda span: span.trace_id), key=lambda span: span.trace_id)
    with _Transaction(connection):
        for trace_id, group in by_trace:
            of_trace = tuple(group)
            added = connection.executemany(_INSERT, map(span_to_row, of_trace)).rowcount
            errors = sum(span.status == "error" for span in of_trace)
            start, end = min(span.start_ns for span in of_trace), max(span.end_ns for span in of_trace)
            connection.execute(_SUMMARISE, (trace_id, start, end, added, errors))


def _delete_traces(connection: sqlite3.Connection, trace_ids: Iterable[str]) -> int:
    removed = 0
    with _Transaction(connection):
        for trace_id in trace_ids:
            removed += connection.execute("DELETE FROM spans WHERE trace_id = ?", (trace_id,)).rowcount
            connection.execute("DELETE FROM traces WHERE trace_id = ?", (trace_id,))
    return removed


def _trim(connection: sqlite3.Connection, oldest: list[tuple[str, int]], excess: int) -> int:
    if not oldest:
        return 0
    trace_id = oldest[0][0]
    with _Transaction(connection):
        removed = connection.execute(
            "DELETE FROM spans WHERE trace_id = ? AND span_id IN"
            " (SELECT span_id FROM spans WHERE trace_id = ? ORDER BY end_ns LIMIT ?)",
            (trace_id, trace_id, min(excess, _PRUNED_AT_ONCE)),
        ).rowcount
        connection.execute("UPDATE traces SET spans = spans - ? WHERE trace_id = ?", (removed, trace_id))
    return removed


class _Transaction:
    """Begins a write transaction, commits it, rolls it back on any error."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            try:
                self._connection.execute("COMMIT")
                return
            except sqlite3.Error:
                self._roll_back()
                raise
        self._roll_back()

    def _roll_back(self) -> None:
        # SQLite rolls back by itself on some errors, a full disk among them.
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
