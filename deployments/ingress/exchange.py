"""One HTTP exchange: sending answers, and noticing that the client has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.types import Message, Receive, Scope, Send

from cluster.api.errors import ApiError
from deployments.ingress.body import ClientGoneError

JSON = "application/json"
EVENT_STREAM = "text/event-stream; charset=utf-8"


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


class Exchange:
    """What handlers use to talk to the client. `headers` go out with whatever the answer is."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, send_timeout_s: float) -> None:
        self.scope = scope
        self.receive = receive
        self._send = send
        self._send_timeout_s = send_timeout_s
        self.headers: dict[str, str] = {}
        self.request_id = ""
        self.status = 0
        """Status sent, 0 before any."""
        self.streaming = False
        """Whether what is sent is a stream of events."""
        self.body_read = not _has_body(scope)
        """Whether nothing of the request is left on the connection."""

    def header(self, name: str) -> list[str]:
        """All values of a request header, as the client sent them."""
        wanted = name.lower().encode()
        return [value.decode("latin-1") for key, value in self.scope["headers"] if key == wanted]

    async def respond(
        self, status: int, body: bytes, content_type: str = JSON, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a whole answer."""
        await self._begin(status, content_type, {"content-length": str(len(body)), **(headers or {})})
        await self.write(body, last=True)

    async def refuse(self, error: ApiError) -> None:
        """Send an error in OpenAI's form. What is left of the request stays unread, so the connection ends with it."""
        await self.respond(error.status, error.body(), headers=error.headers)

    async def begin_stream(self) -> None:
        """Send the head of a stream of server-sent events."""
        self.streaming = True
        await self._begin(200, EVENT_STREAM, {"cache-control": "no-store", "x-accel-buffering": "no"})

    async def _begin(self, status: int, content_type: str, headers: Mapping[str, str]) -> None:
        self.status = status
        pairs = {"content-type": content_type, **self.headers, **headers}
        if not self.body_read:
            # The rest of the request stays unread, so the connection cannot carry another one.
            pairs["connection"] = "close"
        await self._timed(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs.items()],
            }
        )

    async def write(self, data: bytes, last: bool = False) -> None:
        """Send a piece of the body. Raises `ClientGoneError` if the client takes nothing for too long."""
        await self._timed({"type": "http.response.body", "body": data, "more_body": not last})

    async def _timed(self, message: Message) -> None:
        limit = asyncio.timeout(self._send_timeout_s)
        try:
            async with limit:
                await self._send(message)
        except TimeoutError:
            # An outer time limit's error passes through: only this one says that the client reads nothing.
            if not limit.expired():
                raise
            raise ClientGoneError from None

    async def gone(self) -> None:
        """Returns when the client has closed the connection."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
