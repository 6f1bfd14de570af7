"""How a span lies in the store's table: ids and times in columns, attributes, events and links as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from deployments.telemetry.spans import Attributes, SpanEvent, SpanLink, StoredSpan, as_attribute

Row: TypeAlias = tuple[str, str, str | None, str, str, int, int, str, str, str, str, str, str, str]

_MAX_INTEGER: Final = 2**63 - 1


def span_to_row(span: StoredSpan) -> Row:
    """The span in the order of the table's columns. Times outside of 64 bits are clipped, lone surrogates replaced."""
    return (
        span.trace_id,
        span.span_id,
        span.parent_id,
        _text(span.name),
        span.kind,
        _clip(span.start_ns),
        _clip(span.end_ns),
        span.status,
        _text(span.status_message),
        _text(span.process),
        _text(span.instance),
        _dump(dict(span.attributes)) if span.attributes else "",
        _dump([[event.name, event.time_ns, dict(event.attributes)] for event in span.events]) if span.events else "",
        _dump([[link.trace_id, link.span_id, dict(link.attributes)] for link in span.links]) if span.links else "",
    )


def row_to_span(row: Sequence[Any]) -> StoredSpan:
    """The inverse of `span_to_row`. Raises `ValueError` if the JSON in a column is damaged."""
    trace_id, span_id, parent_id, name, kind, start_ns, end_ns, status, message, process, instance = row[:11]
    attributes, events, links = row[11:]
    try:
        return StoredSpan(
            trace_id=trace_id,
            span_id=span_id,
            parent_id=parent_id,
            name=name,
            kind=kind,
            start_ns=start_ns,
            end_ns=end_ns,
            status=status,
            status_message=message,
            process=process,
            instance=instance,
            attributes=_attributes(json.loads(attributes)) if attributes else {},
            events=tuple(SpanEvent(event, time_ns, _attributes(more)) for event, time_ns, more in _load(events)),
            links=tuple(SpanLink(other, span, _attributes(more)) for other, span, more in _load(links)),
        )
    except (TypeError, AttributeError) as error:
        raise ValueError("a stored span is damaged") from error


def _dump(value: object) -> str:
    # ASCII only: text with half of a surrogate pair would otherwise be refused by the database.
    return json.dumps(value, separators=(",", ":"), default=str)


def _load(text: str) -> list[Any]:
    return list(json.loads(text)) if text else []


def _attributes(loaded: dict[str, Any]) -> Attributes:
    return {key: as_attribute(value) for key, value in loaded.items()}


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _clip(number: int) -> int:
    return min(max(number, 0), _MAX_INTEGER)
