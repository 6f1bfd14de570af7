"""What of a log record may be written down: never a caller's words.

Any library may put a prompt into a log call, an exception's text or an f-string. So nothing is searched for; instead
only what cannot be a prompt passes: message templates that stand as literals in the calling code, numbers, booleans,
names of exception types, positions in code, and strings under field names that are known to carry identifiers.
"""

from __future__ import annotations

import enum
import inspect
import logging
import re
from collections.abc import Mapping
from types import CodeType, FrameType, TracebackType
from typing import Final, TypeAlias

from cluster.telemetry import names

LogValue: TypeAlias = "str | int | float | bool | None"

MAX_MESSAGE_CHARS: Final = 500
MAX_IDENTIFIER_CHARS: Final = 128
MAX_STACK_FRAMES: Final = 40
MAX_CAUSES: Final = 8

_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9_.:/@+,=#\[\]*-]{0,128}")
_PLACEHOLDER: Final = re.compile(
    r"%(?:\((?P<name>[^)]*)\))?(?P<format>[#0\- +]*(?:\*|\d+)?(?:\.(?:\*|\d+))?[hlL]?[diouxXeEfFgGcrsa%])"
)
_OURS: Final = ("cluster", "deployments", "infra", "loadtests", "pointsman")
_FRAMES_SEARCHED: Final = 24


class Safe(str):
    """Text that our own code vouches for: a path, a reason, a remedy. Never made from what a caller sent."""

    __slots__ = ()


def is_ours(name: str) -> bool:
    """Whether a logger's or module's name is one of this project's."""
    return name.partition(".")[0] in _OURS


def safe_field(name: str, value: object) -> LogValue:
    """A field's value as it may be logged. Strings pass under an allowed name and in an identifier's shape only."""
    if isinstance(value, Safe):
        return one_line(value, MAX_MESSAGE_CHARS)
    if isinstance(value, enum.Enum):
        return safe_argument(value)
    if isinstance(value, str):
        allowed = name in names.LOG_IDENTIFIERS and _IDENTIFIER.fullmatch(value)
        return str(value) if allowed else _withheld(value)
    return safe_argument(value)


def safe_argument(value: object) -> LogValue:
    """An argument of a log call: numbers, booleans, None, members of enumerations and `Safe` text pass."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Safe):
        return one_line(value, MAX_MESSAGE_CHARS)
    if isinstance(value, enum.Enum):
        # Its name: a member's value could have been made from anything.
        return value.name.lower()
    if isinstance(value, BaseException | type):
        return type_name(value)
    return _withheld(value)


def safe_message(record: logging.LogRecord) -> str | None:
    """The record's message, arguments made safe, if its template is a literal of the calling code; else None.

    Must run in the thread and below the call that logs: the literal is looked up in the calling frame's code.
    """
    if not isinstance(record.msg, str) or not _is_literal(record):
        return None
    return one_line(_fill(record.msg, record.args), MAX_MESSAGE_CHARS)


def safe_exception(error: BaseException) -> tuple[str, ...]:
    """The exception and its causes: type and positions in code, innermost last; no text, no values.

    A class of ours may say `log_safe = True`: then its text is written, too.
    """
    lines: list[str] = []
    current: BaseException | None = error
    for _ in range(MAX_CAUSES):
        if current is None:
            break
        text = str(current) if getattr(type(current), "log_safe", False) and is_ours(type(current).__module__) else ""
        system = f" [errno {current.errno}]" if isinstance(current, OSError) and current.errno is not None else ""
        lines.append(type_name(current) + system + (f": {one_line(text, MAX_MESSAGE_CHARS)}" if text else ""))
        lines.extend(_positions(current.__traceback__))
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return tuple(lines)


def type_name(value: BaseException | type) -> str:
    """Module and name of a type, or of an exception's type."""
    kind = value if isinstance(value, type) else type(value)
    return one_line(f"{kind.__module__}.{kind.__qualname__}", MAX_IDENTIFIER_CHARS)


def _positions(trace: TracebackType | None) -> list[str]:
    found = []
    while trace is not None:
        code = trace.tb_frame.f_code
        found.append(f"  at {_short_path(code.co_filename)}:{trace.tb_lineno} in {code.co_qualname}")
        trace = trace.tb_next
    if len(found) > MAX_STACK_FRAMES:
        half = MAX_STACK_FRAMES // 2
        found = [*found[:half], f"  ... {len(found) - 2 * half} more", *found[-half:]]
    return found


def _short_path(path: str) -> str:
    return "/".join(path.split("/")[-3:])


def _is_literal(record: logging.LogRecord) -> bool:
    frame: FrameType | None = inspect.currentframe()
    for _ in range(_FRAMES_SEARCHED):
        if frame is None:
            return False
        if frame.f_code.co_filename == record.pathname and frame.f_lineno == record.lineno:
            return _has_constant(frame.f_code, record.msg)
        frame = frame.f_back
    return False


def _has_constant(code: CodeType, text: str) -> bool:
    return any(type(constant) is str and constant == text for constant in code.co_consts)


def _fill(template: str, args: object) -> str:
    if not args:
        return template
    positional = list(args) if isinstance(args, tuple) else []
    named = args if isinstance(args, Mapping) else {}

    def replacement(match: re.Match[str]) -> str:
        if match["format"].endswith("%"):
            return "%"
        if match["name"] is not None:
            value = named.get(match["name"])
        else:
            stars = match["format"].count("*")
            del positional[:stars]
            value = positional.pop(0) if positional else None
        safe = safe_argument(value)
        if isinstance(safe, int | float) and "*" not in match["format"]:
            try:
                return f"%{match['format']}" % safe
            except (TypeError, ValueError, OverflowError):
                return str(safe)
        return str(safe)

    return _PLACEHOLDER.sub(replacement, template)


def _withheld(value: object) -> str:
    size = f" of {len(value)}" if isinstance(value, str | bytes | list | tuple | dict | set) else ""
    return f"<{type(value).__name__}{size}>"


def one_line(text: str, limit: int) -> str:
    """`text` without control characters, cut to `limit` characters."""
    clean = "".join(character if character.isprintable() else " " for character in text[: limit + 1])
    return clean if len(clean) <= limit else f"{clean[: limit - 1]}…"
