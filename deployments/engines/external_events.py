"""Server-sent events of an upstream: taken apart, checked, and handed on under the cluster's name for the model."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import msgspec

from deployments.engines import external_errors
from deployments.engines.protocol import Emit, TokenUsage

MAX_EVENT_BYTES: Final = 1_048_576
"""Bytes of one event. The longest sane one carries the logprobs of a token with its alternatives: some kilobytes."""

_DONE: Final = b"[DONE]"

Answer: TypeAlias = "dict[str, Any]"
"""An upstream's JSON object: checked where it is read, otherwise passed through."""


class EventSplitter:
    """Splits a byte stream into the data of its events. Line ends are LF or CRLF; comments and other fields are left out.

    Source: HTML standard, section 9.2.6 (the lone CR that it also allows is sent by no known server).
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scanned = 0
        self._lines: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that `chunk` completes. Raises `ApiError` 502 for an event over the limit."""
        self._buffer += chunk
        events = []
        while (end := self._buffer.find(b"\n", self._scanned)) >= 0:
            line = bytes(self._buffer[:end]).removesuffix(b"\r")
            del self._buffer[: end + 1]
            self._scanned = 0
            if line:
                self._take(line)
            elif self._lines:
                events.append(self._event())
        self._scanned = len(self._buffer)
        if self._scanned + self._size > MAX_EVENT_BYTES:
            raise external_errors.malformed(f"an event is over {MAX_EVENT_BYTES} bytes")
        return events

    def ends_with_done(self) -> bool:
        """Whether the stream's last event is a `[DONE]` that lacks its blank line, as some servers send it."""
        if self._buffer:
            self._take(bytes(self._buffer).removesuffix(b"\r"))
        return b"\n".join(self._lines).strip() == _DONE

    def _take(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            data = line[5:].removeprefix(b" ")
            self._lines.append(data)
            self._size += len(data)

    def _event(self) -> bytes:
        data = b"\n".join(self._lines)
        self._lines.clear()
        self._size = 0
        return data


class StreamRelay:
    """Turns an upstream's events into the cluster's, and notes what they say about usage and end."""

    def __init__(self, model: str, usage_wanted: bool) -> None:
        self._model = model
        self._usage_wanted = usage_wanted
        self._splitter = EventSplitter()
        self.done = False
        """Whether `[DONE]` came."""
        self.emitted = False
        """Whether the caller has been sent anything."""
        self.usage = TokenUsage()
        self.finish_reason: str | None = None
        self.response_id: str | None = None
        self.response_model: str | None = None

    def feed(self, chunk: bytes, emit: Emit) -> None:
        """Send on the events that `chunk` completes. Raises `ApiError` for a broken or failed stream."""
        out: list[bytes] = []
        try:
            for data in self._splitter.feed(chunk):
                if self.done:
                    break
                out.append(self._event(data))
        finally:
            # What came whole before a broken event is part of the answer.
            if events := b"".join(out):
                self.emitted = True
                emit(events)

    def finish(self) -> None:
        """The connection ended. Raises `ApiError` 502 unless the answer had ended before."""
        if not self.done and not self._splitter.ends_with_done():
            raise external_errors.cut_off()

    def _event(self, data: bytes) -> bytes:
        if data.strip() == _DONE:
            # The ingress writes the cluster's own.
            self.done = True
            return b""
        event = read_object(data)
        if event.get("error") is not None:
            raise external_errors.from_event(event["error"])
        choices = event.get("choices")
        if not isinstance(choices, list):
            raise external_errors.malformed("an event has no choices")
        self._note(event, choices)
        if not self._usage_wanted and "usage" in event:
            del event["usage"]
            if not choices:
                return b""
        event["model"] = self._model
        return b"data: " + msgspec.json.encode(event) + b"\n\n"

    def _note(self, event: Answer, choices: list[Any]) -> None:
        if isinstance(event.get("usage"), dict):
            self.usage = read_usage(event)
        reason = first_finish_reason(choices)
        if reason is not None:
            self.finish_reason = reason
        if self.response_id is None and isinstance(event.get("id"), str):
            self.response_id = event["id"][:128]
        if self.response_model is None and isinstance(event.get("model"), str):
            self.response_model = event["model"][:256]


def read_object(data: bytes) -> Answer:
    """The JSON object in `data`. Raises `ApiError` 502 for anything else."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise external_errors.malformed("it is not JSON") from None
    if not isinstance(value, dict):
        raise external_errors.malformed("it is not a JSON object")
    return value


def read_usage(answer: Answer) -> TokenUsage:
    """The token counts in an upstream's answer; zero where it has none."""
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return TokenUsage()
    details = usage.get("prompt_tokens_details")
    return TokenUsage(
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        cached_tokens=_count(details.get("cached_tokens")) if isinstance(details, dict) else 0,
    )


def first_finish_reason(choices: list[Any]) -> str | None:
    """The finish reason of the first choice, if it has one."""
    reason = choices[0].get("finish_reason") if choices and isinstance(choices[0], dict) else None
    return reason[:64] if isinstance(reason, str) else None


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else 0
