"""Takes out of a span what may be a caller's or a model's words, before it leaves the process.

Our own code never puts them in; libraries and the SDK's recording of exceptions
do (an exception's text often quotes the value that it is about).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Status
from opentelemetry.util.types import Attributes

from cluster.telemetry import names

_MAX_DESCRIPTION: Final = 128


def redact(span: ReadableSpan) -> ReadableSpan:
    """The span without content. The span itself where there is nothing to take out."""
    description = span.status.description or ""
    short = _short(description)
    if (
        short == description
        and not _holds_content(span.attributes)
        and not any(_holds_content(event.attributes) for event in span.events)
    ):
        return span
    return ReadableSpan(
        name=span.name,
        context=span.get_span_context(),
        parent=span.parent,
        resource=span.resource,
        attributes=_without_content(span.attributes),
        events=_redact_events(span.events),
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code, short or None),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _redact_events(events: Sequence[Event]) -> tuple[Event, ...]:
    return tuple(Event(event.name, _without_content(event.attributes), event.timestamp) for event in events)


def _short(description: str) -> str:
    # The SDK writes `ExceptionType: its text`; our own descriptions have no colon.
    return description.partition(":")[0][:_MAX_DESCRIPTION]


def _holds_content(attributes: Attributes) -> bool:
    return bool(attributes) and not names.CONTENT_ATTRIBUTES.isdisjoint(attributes or ())


def _without_content(attributes: Attributes) -> Attributes:
    return {key: value for key, value in (attributes or {}).items() if key not in names.CONTENT_ATTRIBUTES}
