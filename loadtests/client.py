"""A connection that sends one request at a time and notes when each piece of the response arrived."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass, field
from enum import StrEnum

from loadtests.http1 import MalformedResponseError, ResponseParser
from loadtests.targets import Target


class Failure(StrEnum):
    """Why an exchange did not run to its end."""

    CONNECT = "connect"
    TIMEOUT = "timeout"
    CLOSED = "closed"
    """The server closed the connection before the response was whole."""
    MALFORMED = "malformed"


@dataclass(slots=True)
class Exchange:
    """One request and what came back. Times are seconds of `time.perf_counter`."""

    started: float
    status: int = 0
    arrivals: list[tuple[float, bytes]] = field(default_factory=list)
    """Body bytes, one entry per network read that carried any."""
    ended: float = 0.0
    failure: Failure | None = None


class _Wire(asyncio.Protocol):
    """One TCP connection, and the response that is arriving on it, if any."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._parser = ResponseParser()
        self._exchange: Exchange | None = None
        self._finished: asyncio.Future[None] | None = None

    async def exchange(self, request: bytes, exchange: Exchange) -> bool:
        """Send and wait for the whole response; returns whether the connection can be used again."""
        transport = self.transport
        if transport is None:
            exchange.failure = Failure.CLOSED
            return False
        self._parser = ResponseParser()
        self._finished = asyncio.get_running_loop().create_future()
        self._exchange = exchange
        try:
            exchange.started = time.perf_counter()
            transport.write(request)
            await self._finished
        finally:
            self._exchange = None
        return exchange.failure is None and self._parser.reusable

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self.transport = transport

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        exchange, finished = self._exchange, self._finished
        if exchange is None or finished is None or finished.done():
            return
        try:
            body = self._parser.feed(data)
        except MalformedResponseError:
            exchange.failure = Failure.MALFORMED
            finished.set_result(None)
            return
        exchange.status = self._parser.status
        if body:
            exchange.arrivals.append((now, body))
        if self._parser.complete:
            finished.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio hands it over
        self.transport = None
        exchange, finished = self._exchange, self._finished
        if exchange is None or finished is None or finished.done():
            return
        self._parser.end_of_stream()
        if not self._parser.complete:
            exchange.failure = Failure.CLOSED
        finished.set_result(None)


class Connection:
    """A keep-alive connection; opens itself on first use and again after the server closed it."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._wire: _Wire | None = None

    async def send(self, request: bytes, timeout_s: float) -> Exchange:
        """Send one encoded request and wait for its whole response. Failures are noted on the exchange, never raised.

        A kept-alive connection that turns out to be closed before anything came back is opened once more, as every
        HTTP client does; `started` then counts from the second try.
        """
        reused = self._wire is not None
        exchange = await self._attempt(request, timeout_s)
        if reused and exchange.failure is Failure.CLOSED and exchange.status == 0:
            exchange = await self._attempt(request, timeout_s)
        return exchange

    def close(self) -> None:
        """Drop the connection, in the middle of a response if need be."""
        wire, self._wire = self._wire, None
        if wire is not None and wire.transport is not None:
            wire.transport.abort()

    async def _attempt(self, request: bytes, timeout_s: float) -> Exchange:
        exchange = Exchange(started=time.perf_counter())
        reusable = False
        try:
            async with asyncio.timeout(timeout_s):
                wire = self._wire or await self._open()
                reusable = await wire.exchange(request, exchange)
        except TimeoutError:
            exchange.failure = Failure.TIMEOUT
        except OSError:
            exchange.failure = Failure.CONNECT
        finally:
            if not reusable:
                self.close()
        exchange.ended = exchange.arrivals[-1][0] if exchange.arrivals else time.perf_counter()
        return exchange

    async def _open(self) -> _Wire:
        context = ssl.create_default_context() if self._target.tls else None
        loop = asyncio.get_running_loop()
        _, wire = await loop.create_connection(_Wire, self._target.host, self._target.port, ssl=context)
        self._wire = wire
        return wire
