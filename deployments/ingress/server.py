"""The HTTP server inside an ingress actor."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from cluster.config.ingress import IngressConfig, LimitsConfig
from deployments.ingress.protocol import BoundedProtocol, ConnectionLimits

BACKLOG = 1024
SEND_BUFFER_BYTES = 262_144
"""What the kernel is asked to hold per connection of what a client has not read; it doubles it for its own books."""

RECEIVE_BUFFER_BYTES = 65_536
"""The same of what a client sends and nobody has read yet: a bound on what one read from a socket brings."""

CONNECTIONS_PER_REQUEST = 4
"""Connections taken, for each request that may be in flight; most of them rest between two requests."""

KEEP_ALIVE_S = 65
"""Longer than the idle time-out of common load balancers, so that they close first."""


class _Server(uvicorn.Server):
    """uvicorn takes over the process's signals; inside an actor they are Ray's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


class IngressServer:
    """Listens on the configured address. Ingress actors of one machine share the port (SO_REUSEPORT)."""

    def __init__(self, app: ASGIApp, config: IngressConfig) -> None:
        self._config = config
        self.follow(config.limits)
        self._server = _Server(
            uvicorn.Config(
                app,
                http=self._protocol,  # type: ignore[arg-type]  # called like a class, and like one makes connections
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                loop="none",
            )
        )
        self._task: asyncio.Task[None] | None = None

    def follow(self, limits: LimitsConfig) -> None:
        """Hold connections that come from now on to these limits."""
        self._limits = ConnectionLimits(
            head_bytes=limits.header_bytes,
            timeout_s=limits.slow_client_timeout_s,
            idle_s=KEEP_ALIVE_S,
            connections=CONNECTIONS_PER_REQUEST * limits.max_concurrent_requests,
        )

    def _protocol(self, *arguments: Any, **named: Any) -> BoundedProtocol:  # noqa: ANN401 - uvicorn's own
        """One connection; uvicorn decides what else it is made of."""
        return BoundedProtocol(*arguments, **named, limits=self._limits)

    async def start(self) -> None:
        """Listen. Raises `OSError` if the address cannot be used."""
        family = socket.AF_INET6 if ":" in self._config.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Connections inherit it. Left to itself, the kernel holds 4 MiB for every client that does not read.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        listener.bind((self._config.host, self._config.port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[listener]))

    @property
    def stopped(self) -> bool:
        """Whether it listens no more."""
        return self._task is None or self._task.done()

    async def stop(self, lame_duck_s: float = 0.0) -> None:
        """Stop accepting, let running requests end, close.

        Before that, for `lame_duck_s`, requests are taken as ever, but each answer ends its connection: clients that keep
        theirs open would come back here otherwise, until it is too late.
        """
        if lame_duck_s > 0:
            # uvicorn makes the headers of its answers of these, once a second.
            self._server.config.encoded_headers.append((b"connection", b"close"))
            await asyncio.sleep(lame_duck_s)
        self._server.should_exit = True
        if self._task is not None:
            await self._task
