"""Reads a request's body within its bounds, and has it parsed where that holds up nobody."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from starlette.types import Receive, Scope

from cluster.api.errors import ApiError
from cluster.config.ingress import LimitsConfig

T = TypeVar("T")

SMALL_BYTES = 8192
"""A body up to this size is parsed at once: the worst of these takes 3 ms. A larger one is parsed on a thread."""

FREE_BYTES = 65_536
"""A body up to this size waits for no memory; uvicorn reads about as much before anybody asks for it."""


class ClientGoneError(ConnectionError):
    """The client closed the connection."""


class BodyMemory:
    """Bytes of large bodies that may be held at once. Who finds none left waits in line, its body unread."""

    def __init__(self, total: int) -> None:
        self.free = total
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, size: int, timeout_s: float) -> AsyncIterator[None]:
        """Hold `size` bytes. Raises `ApiError` 503 if they are not to be had within `timeout_s` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._take(size)
        except TimeoutError:
            message = "Too many large bodies arrive at once; try again in a moment."
            headers = {"retry-after": "1"}
            raise ApiError(503, "overloaded", message, type="server_error", headers=headers) from None
        try:
            yield
        finally:
            self._give(size)

    async def _take(self, size: int) -> None:
        if not self._line and size <= self.free:
            self.free -= size
            return
        turn = asyncio.get_running_loop().create_future()
        self._line.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # Its turn came in the same moment in which it stopped waiting.
                self._give(size)
            self._let_in()
            raise

    def _give(self, size: int) -> None:
        self.free += size
        self._let_in()

    def _let_in(self) -> None:
        while self._line and (self._line[0][1].done() or self._line[0][0] <= self.free):
            size, turn = self._line.popleft()
            if not turn.done():
                self.free -= size
                turn.set_result(None)


class BodyReader:
    """Reads the bodies of one ingress. Everything but the parsing runs on its event loop."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._memory = BodyMemory(limits.body_bytes_at_once)
        # One thread: large bodies are parsed one after the other, so what parsing takes of memory is taken once.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="parse")

    async def read(self, scope: Scope, receive: Receive, parse: Callable[[bytes], T]) -> T:
        """What `parse` makes of the whole body.

        Raises `ApiError` 413 without reading past the limit, 408 for a body that comes too slowly, 503 if too many large
        ones come at once, what `parse` raises, and `ClientGoneError`.
        """
        declared = _declared(scope)
        if declared is not None and declared > self._limits.body_bytes:
            raise self._too_large()
        body = _Arriving(receive)
        loop = asyncio.get_running_loop()
        await self._more(body, FREE_BYTES)
        if body.complete:
            data = body.data()
            return parse(data) if len(data) <= SMALL_BYTES else await loop.run_in_executor(self._thread, parse, data)
        size = declared if declared is not None else self._limits.body_bytes
        async with self._memory.hold(size, self._limits.slow_client_timeout_s):
            await self._more(body, self._limits.body_bytes)
            return await loop.run_in_executor(self._thread, parse, body.data())

    async def _more(self, body: _Arriving, enough: int) -> None:
        """Read until the body is complete or has more than `enough` bytes."""
        try:
            async with asyncio.timeout(self._limits.slow_client_timeout_s):
                while not body.complete and body.size <= enough:
                    await body.read()
        except TimeoutError:
            limit = self._limits.slow_client_timeout_s
            raise ApiError(408, "request_timeout", f"The body took longer than {limit:g} seconds to arrive.") from None
        if body.size > self._limits.body_bytes:
            raise self._too_large()

    def _too_large(self) -> ApiError:
        limit = self._limits.body_bytes
        return ApiError(
            413,
            "request_too_large",
            f"The body is larger than {limit} bytes, the limit of this cluster; send less at once.",
        )


class _Arriving:
    """A body on its way."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._chunks: list[bytes] = []
        self.size = 0
        self.complete = False

    async def read(self) -> None:
        """Take in the next piece."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk = message.get("body", b"")
        self.size += len(chunk)
        self._chunks.append(chunk)
        self.complete = not message.get("more_body", False)

    def data(self) -> bytes:
        """The whole body. The pieces are let go, so that it is held once."""
        chunks, self._chunks = self._chunks, []
        return b"".join(chunks)


def _declared(scope: Scope) -> int | None:
    """The `content-length`; None for a body that comes in chunks."""
    value = next((value for name, value in scope["headers"] if name == b"content-length"), None)
    return int(value) if value is not None and value.isdigit() else None
