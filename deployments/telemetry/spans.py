"""A finished span as Pointsman keeps it, whatever made it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from cluster.telemetry import names

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

AttributeValue: TypeAlias = (
    "str | bool | int | float | tuple[str, ...] | tuple[bool, ...] | tuple[int, ...] | tuple[float, ...]"
)
Attributes: TypeAlias = Mapping[str, AttributeValue]


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """Something that happened within a span."""

    name: str
    time_ns: int
    """Nanoseconds since the epoch."""
    attributes: Attributes = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SpanLink:
    """A reference to a span of another trace, for instance the context that an unauthenticated caller claimed."""

    trace_id: str
    span_id: str
    attributes: Attributes = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredSpan:
    """One finished span. Ids are lower-case hex (32 and 16 digits), times are nanoseconds since the epoch."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    kind: str
    """`internal`, `server`, `client`, `producer` or `consumer`."""
    start_ns: int
    end_ns: int
    status: str
    """`unset`, `ok` or `error`."""
    status_message: str
    process: str
    """Role of the process that made it, for instance `ingress` or `replica:dense`."""
    instance: str
    """Unique id of that process."""
    attributes: Attributes = field(default_factory=dict)
    events: tuple[SpanEvent, ...] = ()
    links: tuple[SpanLink, ...] = ()

    @property
    def duration_ns(self) -> int:
        """Nanoseconds from start to end, never negative."""
        return max(0, self.end_ns - self.start_ns)


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """One line of a list of traces."""

    trace_id: str
    start_ns: int
    """Earliest start of its spans, nanoseconds since the epoch."""
    end_ns: int
    """Latest end of its spans, nanoseconds since the epoch."""
    spans: int
    errors: int
    """Spans whose status is `error`."""
    root: StoredSpan | None
    """The span that the tree begins with; None if it is not in the store."""

    @property
    def duration_ns(self) -> int:
        """Nanoseconds from the earliest start to the latest end."""
        return max(0, self.end_ns - self.start_ns)


def from_sdk(span: ReadableSpan) -> StoredSpan:
    """What the store keeps of a span of the OpenTelemetry SDK. Raises `ValueError` for a span without a context."""
    context = span.get_span_context()
    if context is None or span.start_time is None:
        raise ValueError("a span without context or start cannot be stored")
    resource = span.resource.attributes
    return StoredSpan(
        trace_id=f"{context.trace_id:032x}",
        span_id=f"{context.span_id:016x}",
        parent_id=f"{span.parent.span_id:016x}" if span.parent else None,
        name=span.name,
        kind=span.kind.name.lower(),
        start_ns=span.start_time,
        end_ns=span.end_time if span.end_time is not None else span.start_time,
        status=span.status.status_code.name.lower(),
        status_message=span.status.description or "",
        process=str(resource.get(names.PROCESS_ROLE, "")),
        instance=str(resource.get(names.SERVICE_INSTANCE_ID, "")),
        attributes=_plain(span.attributes or {}),
        events=tuple(SpanEvent(event.name, event.timestamp, _plain(event.attributes or {})) for event in span.events),
        links=tuple(
            SpanLink(f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}", _plain(link.attributes or {}))
            for link in span.links
        ),
    )


def root_of(spans: Iterable[StoredSpan]) -> StoredSpan | None:
    """The earliest span whose parent is not among `spans`; None for no spans, or spans that are each other's parents."""
    spans = tuple(spans)
    known = {span.span_id for span in spans}
    roots = [span for span in spans if span.parent_id is None or span.parent_id not in known]
    return min(roots, key=lambda span: (span.start_ns, -span.end_ns), default=None)


def _plain(attributes: Mapping[str, object]) -> Attributes:
    return {key: as_attribute(value) for key, value in attributes.items()}


def as_attribute(value: object) -> AttributeValue:
    """`value` as an attribute: scalars as they are, sequences as tuples, anything else as text."""
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, tuple | list):
        return tuple(item if isinstance(item, str | bool | int | float) else str(item) for item in value)  # type: ignore[return-value]
    return str(value)
