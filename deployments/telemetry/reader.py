"""Reading traces back from the embedded store, while any number of processes write to it."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from deployments.telemetry.rows import row_to_span
from deployments.telemetry.spans import StoredSpan, TraceSummary
from deployments.telemetry.store_file import SCHEMA_VERSION, BrokenStoreError, connect, unavailable

_HEX: Final = re.compile(r"[0-9a-f]{1,32}")
_SPANS: Final = """SELECT trace_id, span_id, parent_id, name, kind, start_ns, end_ns, status, status_message, process,
    instance, attributes, events, links FROM spans AS span WHERE trace_id = ?"""
_ORDER: Final = " ORDER BY start_ns, end_ns DESC LIMIT ?"
_OF_TRACE: Final = _SPANS + _ORDER
_ORPHAN: Final = """ AND (parent_id IS NULL OR NOT EXISTS (
    SELECT 1 FROM spans AS parent WHERE parent.trace_id = span.trace_id AND parent.span_id = span.parent_id))"""
_ROOT: Final = _SPANS + _ORPHAN + _ORDER


class TraceIdError(ValueError):
    """The text is no trace id, or the beginning of several. The message says what to do."""


class TraceReader:
    """Reads one store file. A file that does not exist yet reads as an empty store."""

    def __init__(self, path: Path, *, busy_timeout_s: float = 2.0) -> None:
        self._path = path
        self._busy_timeout_s = busy_timeout_s
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def get_trace(self, trace_id: str, *, limit: int = 20_000) -> tuple[StoredSpan, ...]:
        """The spans of a trace by start time, at most `limit`; empty if there is no such trace.

        `trace_id` may be the beginning of an id. Raises `TraceIdError` if it is no hex or begins several ids, and
        `StoreUnavailableError` if the store cannot be read.
        """
        prefix = trace_id.strip().lower()
        if not _HEX.fullmatch(prefix):
            raise TraceIdError(
                "A trace id has up to 32 hex digits; `pointsman trace` without an id lists the recent ones."
            )
        found = [
            row[0]
            for row in self._query(
                "SELECT trace_id FROM traces WHERE trace_id >= ? AND trace_id < ? ORDER BY trace_id LIMIT 5",
                (prefix, prefix + "g"),
            )
        ]
        if not found:
            return ()
        if len(found) > 1:
            raise TraceIdError(f"{prefix} begins several trace ids ({', '.join(found)}); give more of its digits.")
        rows = self._query(_OF_TRACE, (found[0], limit))
        return tuple(self._span(row) for row in rows)

    def list_traces(self, *, limit: int = 20, since_ns: int = 0) -> tuple[TraceSummary, ...]:
        """Traces with activity after `since_ns` (nanoseconds since the epoch), the latest first, at most `limit`.

        Raises `StoreUnavailableError` if the store cannot be read.
        """
        rows = self._query(
            "SELECT trace_id, start_ns, end_ns, spans, errors FROM traces WHERE end_ns > ? ORDER BY end_ns DESC LIMIT ?",
            (since_ns, limit),
        )
        summaries = []
        for trace_id, start_ns, end_ns, spans, errors in rows:
            roots = self._query(_ROOT, (trace_id, 1))
            root = self._span(roots[0]) if roots else None
            summaries.append(TraceSummary(trace_id, start_ns, end_ns, spans, errors, root))
        return tuple(summaries)

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _query(self, statement: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
        try:
            connection = self._open()
            return connection.execute(statement, parameters).fetchall() if connection is not None else []
        except sqlite3.Error as error:
            raise unavailable(self._path, error) from error

    def _open(self) -> sqlite3.Connection | None:
        if self._connection is None:
            if not self._path.exists():
                return None
            connection = connect(self._path, self._busy_timeout_s)
            try:
                connection.execute("PRAGMA query_only = 1")
                version = connection.execute("PRAGMA user_version").fetchone()[0]
            except sqlite3.Error:
                connection.close()
                raise
            if version == 0:
                connection.close()
                return None
            if version != SCHEMA_VERSION:
                connection.close()
                raise BrokenStoreError(f"{self._path}: schema version {version}, this release reads {SCHEMA_VERSION}")
            self._connection = connection
        return self._connection

    def _span(self, row: tuple[Any, ...]) -> StoredSpan:
        try:
            return row_to_span(row)
        except ValueError as error:
            raise BrokenStoreError(f"{self._path}: {error}; the next `pointsman up` puts the file aside") from error
