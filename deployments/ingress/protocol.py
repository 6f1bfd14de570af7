"""The HTTP protocol of the ingress: uvicorn's, with bounds on what it holds before the application sees a request.

uvicorn's own buffers a head for as long as it comes in, queues pipelined requests without limit, takes the trailers of
a chunked body for headers, and waits for ever for peers that stop reading.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import dataclass
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

_CODES = {400: "invalid_http", 408: "request_timeout", 431: "headers_too_large"}

FRAMING_PER_BYTE = 8
"""A chunked body of one-byte chunks has six bytes of framing for each; what is past this is trailers or padding."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds on one connection, and on their number."""

    head_bytes: int
    """Bytes of a request's head, and of the trailers and framing around its body."""
    timeout_s: float
    """Seconds that a head may take, and that a peer may read nothing of what is sent."""
    idle_s: float
    """Seconds without a request after which a connection is closed."""
    connections: int


class _PipelinedError(RuntimeError):
    """The client sent its next request before the answer to the last one was complete."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Answers 431 to a head that grows too long, and 408 to one that takes too long.

    One request at a time: what comes before an answer is complete is not read as a request, and the connection ends
    with that answer. HTTP/1.1 clients may not count on more.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: ConnectionLimits,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._head_bytes = 0
        self._in_head = True
        self._message_ended = False
        self._received = self._body_bytes = 0
        self._deaf = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._active_at = self.loop.time()
        self._unsent = 0

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clocks, or end the connection if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            transport.abort()
            return
        self._start_timer()
        self._watch = self.loop.call_later(self._limits.timeout_s, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._stop_timer()
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A head begins. Raising ends the parsing: see `send_400_response`."""
        if self._answering:
            raise _PipelinedError
        self._in_head = True
        self._received = self._body_bytes = 0
        self._start_timer()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; what comes after the head is a trailer, which nothing here has a use for."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is complete: from here on the application bounds what it reads."""
        self._in_head = False
        self._head_bytes = 0
        self._stop_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The next bytes belong to the head of another request."""
        super().on_message_complete()
        self._in_head = True
        self._message_ended = True

    def on_response_complete(self) -> None:
        """The answer is out; the connection is idle from here on."""
        self._active_at = self.loop.time()
        super().on_response_complete()

    def data_received(self, data: bytes) -> None:
        """Parse what came in, and refuse a head that grows too long. One that is complete, the application measures."""
        if self._deaf:
            # Read on, so that the end of the connection is noticed; but there is nothing to be gained here any more.
            return
        self._active_at = self.loop.time()
        self._message_ended = False
        in_head = self._in_head
        super().data_received(data)
        if self.transport.is_closing() or self.parser is None or self._message_ended:
            # How much of what came together with the end of a message belongs to the next head is not known.
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.head_bytes:
                self._refuse(b"431 Request Header Fields Too Large", self._too_long)
        elif not in_head:
            self._received += len(data)
            if self._received > self._limits.head_bytes + FRAMING_PER_BYTE * self._body_bytes:
                self._deafen()

    @property
    def _too_long(self) -> str:
        return f"The headers exceed {self._limits.head_bytes} bytes."

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP in the form of all other errors; in the middle of an answer, just listen no more."""
        if self._answering:
            self._deafen()
        else:
            self._refuse(b"400 Bad Request", msg)

    def _deafen(self) -> None:
        self._deaf = True
        if self._answering:
            self.cycle.keep_alive = False
        else:
            self.transport.close()

    def _look(self) -> None:
        """End a connection on which nothing moves: a peer that reads nothing, or one that asks for nothing."""
        unsent = self.transport.get_write_buffer_size()
        stuck = unsent > 0 and unsent >= self._unsent > 0
        idle = not self._answering and self.loop.time() - self._active_at > self._limits.idle_s
        if stuck or self.transport.is_closing():
            self.transport.abort()
            return
        if idle:
            self.transport.close()
        self._unsent = unsent
        self._watch = self.loop.call_later(self._limits.timeout_s, self._look)

    def _start_timer(self) -> None:
        self._stop_timer()
        self._head_timer = self.loop.call_later(self._limits.timeout_s, self._too_slow)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        if self._in_head and not self._answering and not self.transport.is_closing():
            self._refuse(b"408 Request Timeout", f"The headers took longer than {self._limits.timeout_s:g} seconds.")

    def _refuse(self, status: bytes, message: str) -> None:
        code = _CODES[int(status[:3])]
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        body = json.dumps({"error": error}).encode()
        head = (
            b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\nx-request-id: %s\r\n\r\n"
            % (
                status,
                len(body),
                # The caller's own was not read, or cannot be relied on.
                uuid.uuid4().hex.encode(),
            )
        )
        self.transport.write(head + body)
        self.transport.close()
