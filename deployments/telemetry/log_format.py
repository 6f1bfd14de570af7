"""A log record as one JSON line: time, level, process, trace ids, message and typed fields."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections.abc import Iterator
from typing import Final

from opentelemetry import trace

from cluster.telemetry import names
from deployments.telemetry.log_safety import (
    MAX_MESSAGE_CHARS,
    LogValue,
    Safe,
    is_ours,
    one_line,
    safe_exception,
    safe_field,
    safe_message,
)

_FIELDS: Final = "pointsman_fields"
_EVENT: Final = re.compile(r"[a-z0-9][a-z0-9_.]{0,63}")
_MAX_PLAIN_CHARS: Final = 4000


def log_event(logger: logging.Logger, level: int, event: str, **fields: LogValue) -> None:
    """Log `event` (a short name in snake case) with typed fields.

    Strings are written under the field names of `names.LOG_IDENTIFIERS` or wrapped in `Safe`; any other becomes
    its type and length.
    """
    if logger.isEnabledFor(level):
        message = event if _EVENT.fullmatch(event) else "(no event name)"
        logger.log(level, Safe(message), extra={_FIELDS: fields}, stacklevel=2)


class SafeFormatter(logging.Formatter):
    """Formats in the thread that logs: the trace is current there, and no object of a request is kept for later."""

    def __init__(self, process: str) -> None:
        """`process` is the role that every line names, for instance `ingress`."""
        super().__init__()
        self._process = process
        self._plain = 0

    @contextlib.contextmanager
    def library_text(self) -> Iterator[None]:
        """While this is open, libraries' messages are written as they are.

        For the start of an engine: what a library says then explains a failure, and no request exists yet.
        """
        self._plain += 1
        try:
            yield
        finally:
            self._plain -= 1

    def format(self, record: logging.LogRecord) -> str:
        """The line without its end; empty if it has nothing to say that may be written.

        Never raises: a log call must not fail a request, whatever it was given.
        """
        try:
            return self._line(record)
        except Exception as error:  # noqa: BLE001 - any object may be in a record, and may fail in any way
            failed: dict[str, LogValue] = {
                "time": _timestamp(record.created),
                "level": "error",
                "process": self._process,
                "message": "a log record could not be written",
                "error": type(error).__name__,
            }
            return json.dumps(failed, separators=(",", ":"))

    def _line(self, record: logging.LogRecord) -> str:
        ours = is_ours(record.name)
        plain = self._plain > 0 and not ours
        message = _message(record, plain)
        if message is None and not ours and record.levelno < logging.WARNING:
            return ""
        line: dict[str, LogValue | tuple[str, ...]] = {
            "time": _timestamp(record.created),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": message or f"(text withheld, {record.module}:{record.lineno})",
        }
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            line["trace_id"] = f"{context.trace_id:032x}"
            line["span_id"] = f"{context.span_id:016x}"
        for name, value in _fields(record).items():
            line.setdefault(name, safe_field(name, value))
        if record.exc_info and record.exc_info[1] is not None:
            text = self.formatException(record.exc_info)[-_MAX_PLAIN_CHARS:] if plain else ""
            line["exception"] = tuple(text.splitlines()) if plain else safe_exception(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace").decode()


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """The fields of `log_event`, or what stands under an identifier's name in a plain log call's `extra`."""
    fields = getattr(record, _FIELDS, None)
    if isinstance(fields, dict):
        return fields
    return {name: value for name, value in record.__dict__.items() if name in names.LOG_IDENTIFIERS}


def _message(record: logging.LogRecord, plain: bool) -> str | None:
    if isinstance(record.msg, Safe):
        return one_line(record.msg, MAX_MESSAGE_CHARS)
    return record.getMessage()[:_MAX_PLAIN_CHARS] if plain else safe_message(record)


def _timestamp(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1_000_000):06d}Z"
