"""From what arrived on the wire to a request's record: server-sent events, tokens, errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loadtests.client import Exchange
from loadtests.records import Arrival, RequestRecord

_DONE = b"[DONE]"


@dataclass(slots=True)
class _Stream:
    """What the events of one stream added up to."""

    texts: list[tuple[float, int]]
    """Per event with text: when it arrived, and the length of its text in characters."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str | None = None
    model: str | None = None
    error: str | None = None
    done: bool = False


def record_of(exchange: Exchange) -> RequestRecord:
    """The record of one streamed request."""
    stream = _read(exchange.arrivals) if exchange.status == 200 else _Stream([])
    error = _error(exchange, stream)
    counts, exact = tokens_per_event([length for _, length in stream.texts], stream.completion_tokens)
    times = [when for when, _ in stream.texts]
    return RequestRecord(
        started_s=exchange.started,
        ended_s=exchange.ended,
        status=exchange.status,
        error=error,
        ttft_s=times[0] - exchange.started if times else None,
        prompt_tokens=stream.prompt_tokens,
        completion_tokens=stream.completion_tokens,
        arrivals=_arrivals(exchange.started, times, counts),
        tokens_exact=exact,
        finish_reason=stream.finish_reason,
        answered_by=stream.model,
    )


def tokens_per_event(lengths: Sequence[int], tokens: int) -> tuple[list[int], bool]:
    """How many tokens each event carries, and whether that was counted or apportioned.

    A server that sends every token on its own has as many events as tokens, but for a last token without text (the
    end-of-sequence token), and up to one event more. When events were merged, the surplus goes to the longest texts:
    one token to each in turn, which is right when merged tokens make longer texts.
    """
    surplus = tokens - len(lengths)
    if not lengths:
        return [], tokens == 0
    counts = [1] * len(lengths)
    if surplus <= 1:
        return counts, True
    weights = [float(max(length, 1)) for length in lengths]
    for _ in range(surplus):
        longest = max(range(len(lengths)), key=lambda at: weights[at] / counts[at])
        counts[longest] += 1
    return counts, False


def _arrivals(started: float, times: Sequence[float], counts: Sequence[int]) -> tuple[Arrival, ...]:
    """One entry per network read: events that came in the same read share its time stamp."""
    found: list[Arrival] = []
    previous, at, tokens = started, None, 0
    for when, count in zip(times, counts, strict=True):
        if at is not None and when != at:
            found.append(Arrival(at - previous, tokens))
            previous, tokens = at, 0
        at = when
        tokens += count
    if at is not None:
        found.append(Arrival(at - previous, tokens))
    return tuple(found)


def _error(exchange: Exchange, stream: _Stream) -> str | None:
    if exchange.failure is not None:
        return str(exchange.failure)
    if exchange.status != 200:
        return f"http_{exchange.status}"
    if stream.error is not None:
        return stream.error
    if not stream.done:
        return "no_done"
    return None


def _read(arrivals: Sequence[tuple[float, bytes]]) -> _Stream:
    stream = _Stream([])
    rest = b""
    for when, data in arrivals:
        rest += data
        *events, rest = rest.replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            payload = b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
            if payload == _DONE:
                stream.done = True
            elif payload:
                _take(stream, when, payload)
    return stream


def _take(stream: _Stream, when: float, payload: bytes) -> None:
    try:
        event = json.loads(payload)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        stream.error = "malformed_event"
        return
    if "error" in event:
        stream.error = "stream_error"
        return
    stream.model = event.get("model") or stream.model
    usage: dict[str, Any] = event.get("usage") or {}
    if usage:
        stream.prompt_tokens = usage.get("prompt_tokens") or 0
        stream.completion_tokens = usage.get("completion_tokens") or 0
    for choice in event.get("choices") or []:
        delta = choice.get("delta") or {}
        text = delta.get("content") or delta.get("reasoning_content") or choice.get("text") or ""
        if text:
            stream.texts.append((when, len(text)))
        stream.finish_reason = choice.get("finish_reason") or stream.finish_reason
