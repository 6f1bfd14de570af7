"""Takes out of a span what may be a caller's or a model's words, before it leaves the process.

Our own code puts them in only if the operator asks for it; libraries and the SDK's recording of exceptions may at any
time (an exception's text often quotes the value that it is about).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Status
from opentelemetry.util.types import Attributes

from cluster.telemetry import names

_MAX_DESCRIPTION: Final = 128
_NONE: Final[frozenset[str]] = frozenset()
_PREFIXES: Final = tuple(f"{name}." for name in sorted(names.CONTENT_ATTRIBUTES))


def redact(span: ReadableSpan, *, keep_messages: bool = False) -> ReadableSpan:
    """The span without content. The span itself where there is nothing to take out.

    `keep_messages` lets what was said stay on the span (`names.MESSAGE_ATTRIBUTES`), and nothing else.
    """
    kept = names.MESSAGE_ATTRIBUTES if keep_messages else _NONE
    description = span.status.description or ""
    short = _short(description)
    if (
        short == description
        and not _holds_content(span.attributes, kept)
        and not any(_holds_content(event.attributes, _NONE) for event in span.events)
    ):
        return span
    return ReadableSpan(
        name=span.name,
        context=span.get_span_context(),
        parent=span.parent,
        resource=span.resource,
        attributes=_without_content(span.attributes, kept),
        events=_redact_events(span.events),
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code, short or None),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _redact_events(events: Sequence[Event]) -> tuple[Event, ...]:
    return tuple(Event(event.name, _without_content(event.attributes, _NONE), event.timestamp) for event in events)


def _short(description: str) -> str:
    # The SDK writes `ExceptionType: its text`; our own descriptions have no colon.
    return description.partition(":")[0][:_MAX_DESCRIPTION]


def _is_content(key: str, kept: frozenset[str]) -> bool:
    if key in kept:
        return False
    if key in names.CONTENT_ATTRIBUTES:
        return True
    # Older instrumentations count messages in the name: `gen_ai.prompt.0.content`.
    return key.startswith(_PREFIXES)


def _holds_content(attributes: Attributes, kept: frozenset[str]) -> bool:
    return any(_is_content(key, kept) for key in attributes or ())


def _without_content(attributes: Attributes, kept: frozenset[str]) -> Attributes:
    return {key: value for key, value in (attributes or {}).items() if not _is_content(key, kept)}
