"""The trust boundary of traces.

W3C trace context lets a caller choose the id that a request is recorded under and whether it is recorded at all. Only
callers who proved who they are get that; anybody else's request begins a trace of its own that names the claimed
context in a link. Baggage is never read: nothing here needs it, and it would travel on to every process.
Source: W3C Trace Context, https://www.w3.org/TR/trace-context/.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from cluster.telemetry import names

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
MAX_TRACEPARENT_CHARS: Final = 128
MAX_TRACESTATE_CHARS: Final = 512
MAX_TRACESTATE_MEMBERS: Final = 32

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[\x20-\x7e]*)?")
_MEMBER: Final = re.compile(
    r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)

Headers = Iterable[tuple[bytes, bytes]]
"""Raw headers as ASGI gives them: each occurrence on its own, names in lower case."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """How a request's first span is to be started: `tracer.start_span(..., context=it.context, links=it.links)`.

    `context` is never None, so that no span that happens to be current becomes the parent.
    """

    context: Context
    links: tuple[Link, ...] = ()


def incoming_context(headers: Headers, *, trusted: bool) -> Incoming:
    """Where the trace of a request begins.

    `trusted` callers (authenticated, or any on a loopback listener that asks for no keys) continue their trace; others
    get a new one with a link. Missing, malformed or repeated `traceparent` headers are ignored. Never raises.
    """
    parents: list[bytes] = []
    states: list[bytes] = []
    for name, value in headers:
        if name == b"traceparent":
            parents.append(value)
        elif name == b"tracestate":
            states.append(value)
    if len(parents) != 1:
        return Incoming(Context())
    claimed = _parse(_ascii(parents[0]), _ascii(b",".join(states)) if trusted else "")
    if claimed is None:
        return Incoming(Context())
    if trusted:
        return Incoming(set_span_in_context(NonRecordingSpan(claimed), Context()))
    return Incoming(Context(), (Link(claimed, {names.LINK_REASON: names.LINK_UNAUTHENTICATED}),))


def outgoing_headers(span: Span) -> dict[str, str]:
    """`traceparent` and, if there is one, `tracestate` that make `span` the parent of a span elsewhere.

    Nothing else is ever handed on. Empty for a span without a valid context.
    """
    context = span.get_span_context()
    if not context.is_valid:
        return {}
    headers = {TRACEPARENT: f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"}
    if context.trace_state and (state := context.trace_state.to_header()):
        headers[TRACESTATE] = state
    return headers


def context_from(headers: Mapping[str, str]) -> Context:
    """The other end of `outgoing_headers`, between processes of the cluster. Anything malformed gives an empty context."""
    claimed = _parse(headers.get(TRACEPARENT, ""), headers.get(TRACESTATE, ""))
    return Context() if claimed is None else set_span_in_context(NonRecordingSpan(claimed), Context())


def _parse(parent: str, state: str) -> SpanContext | None:
    if len(parent) > MAX_TRACEPARENT_CHARS:
        return None
    match = _TRACEPARENT.fullmatch(parent.strip(" \t"))
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more is not None):
        return None
    context = SpanContext(
        trace_id=int(trace_id, 16),
        span_id=int(span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(int(flags, 16) & TraceFlags.SAMPLED),
        trace_state=_state(state),
    )
    return context if context.is_valid else None


def _state(state: str) -> TraceState:
    if not state or len(state) > MAX_TRACESTATE_CHARS or state.count(",") >= MAX_TRACESTATE_MEMBERS:
        return TraceState()
    members = [stripped for member in state.split(",") if (stripped := member.strip(" \t"))]
    # Checked here because OpenTelemetry's own parser logs what it does not like, and that is the caller's text.
    if not all(_MEMBER.fullmatch(member) for member in members):
        return TraceState()
    pairs = [(key, value) for key, _, value in (member.partition("=") for member in members)]
    return TraceState(pairs) if len(dict(pairs)) == len(pairs) else TraceState()


def _ascii(value: bytes) -> str:
    # Bytes beyond ASCII become characters that no pattern here takes.
    return value[: MAX_TRACESTATE_CHARS + 1].decode("ascii", "replace")
