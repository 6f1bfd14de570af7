"""The replica's end of the channel: one connection per ingress, one frame per engine step."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from cluster.experts.load import ExpertLoad
from deployments.channel.messages import (
    Cancel,
    ChannelError,
    Experts,
    Hello,
    Message,
    Order,
    Stats,
    encode_frame,
    read_frame,
)

_log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 1.0

MAX_UNSENT_BYTES = 32 * 1024 * 1024
MAX_UNSENT_S = 5.0
"""An ingress that leaves this much unread for this long is taken for hung; its connection is cut and its requests end."""
UNSENT_CEILING_BYTES = 4 * MAX_UNSENT_BYTES
"""Never is more than this held for one ingress, however short the time."""
EXPERTS_PERIOD_S = 1.0
"""Seconds between two messages about the load of experts at least: heat moves in tens of seconds."""


@dataclass(frozen=True, slots=True)
class IngressAddress:
    """Where an ingress listens for replicas. `secret` is what the replica shows to be let in."""

    ingress_id: str
    host: str
    port: int
    secret: str


class IngressConnection:
    """A connection to one ingress. `send` only appends; what one engine step produced leaves as one frame."""

    def __init__(
        self,
        writer: asyncio.StreamWriter,
        reader: asyncio.StreamReader,
        on_cancel: Callable[[str], None],
        on_closed: Callable[[], None],
        on_order: Callable[[Order], None],
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._on_cancel = on_cancel
        self._on_closed = on_closed
        self._on_order = on_order
        self._pending: list[Message] = []
        self._flush_scheduled = False
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._listen())
        self._last_stats: Stats | None = None
        self._last_sent = 0.0
        self._last_load: ExpertLoad | None = None
        self._load_sent = -EXPERTS_PERIOD_S
        self._unread_since: float | None = None

    @property
    def open(self) -> bool:
        """Whether the ingress can still be reached."""
        return not self._writer.is_closing()

    def send(self, message: Message) -> None:
        """Queue a message. It leaves once the callbacks that are ready now have run: after the engine step."""
        self._pending.append(message)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            # The tasks of the other streams of this step are already in the ready queue. One turn to let their
            # wake-ups run, and a second one for what these tasks produce.
            self._loop.call_soon(self._loop.call_soon, self._flush)

    def send_stats(self, stats: Stats, now: float, at_least_every_s: float) -> None:
        """Send a snapshot if it changed, or as a sign of life."""
        if stats != self._last_stats or now - self._last_sent >= at_least_every_s:
            self._last_stats, self._last_sent = stats, now
            self.send(stats)

    def send_experts(self, load: ExpertLoad | None, now: float) -> None:
        """Send the load of experts if it changed, but not more often than every `EXPERTS_PERIOD_S`."""
        if load is None or load == self._last_load or now - self._load_sent < EXPERTS_PERIOD_S:
            return
        self._last_load, self._load_sent = load, now
        self.send(Experts(load))

    def _flush(self) -> None:
        self._flush_scheduled = False
        pending, self._pending = self._pending, []
        if not pending or self._writer.is_closing():
            return
        self._writer.write(encode_frame(pending))
        self._cut_if_unread(self._writer.transport.get_write_buffer_size())

    def _cut_if_unread(self, unsent: int) -> None:
        """A burst of large answers is no sign of a hung ingress; one that stays is."""
        if unsent <= MAX_UNSENT_BYTES:
            self._unread_since = None
            return
        now = self._loop.time()
        if self._unread_since is None:
            self._unread_since = now
        if unsent > UNSENT_CEILING_BYTES or now - self._unread_since >= MAX_UNSENT_S:
            _log.warning("ingress leaves %d bytes unread, cutting the connection", unsent)
            self._writer.transport.abort()

    async def _listen(self) -> None:
        try:
            while True:
                for message in await read_frame(self._reader):
                    if isinstance(message, Cancel):
                        self._on_cancel(message.stream)
                    elif isinstance(message, Order):
                        self._on_order(message)
        except (asyncio.IncompleteReadError, ConnectionError, ChannelError, OSError):
            pass
        finally:
            self._writer.close()
            self._on_closed()

    def cut(self) -> None:
        """End the connection now, whatever is queued: the ingress sees a replica that died.

        On the socket itself: what a transport is told takes effect in a later turn of the event loop, and a process that
        gives itself up has none.
        """
        transport_socket = self._writer.get_extra_info("socket")
        if transport_socket is None:
            return
        # uvloop's sockets only tell their number, so the connection is ended through one of our own.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(transport_socket.fileno())) as own:
            own.shutdown(socket.SHUT_RDWR)

    async def close(self) -> None:
        """Close once everything queued has left, or the ingress has not taken it for `CLOSE_TIMEOUT_S`."""
        self._flush()
        self._task.cancel()
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._writer.wait_closed()


async def connect(
    address: IngressAddress,
    hello: Hello,
    on_cancel: Callable[[str], None],
    on_closed: Callable[[], None],
    on_order: Callable[[Order], None] = lambda _: None,
) -> IngressConnection:
    """Connect to an ingress and introduce this replica. Raises `OSError` or `TimeoutError`."""
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(address.host, address.port)
    connection = IngressConnection(writer, reader, on_cancel, on_closed, on_order)
    connection.send(hello)
    return connection
