"""One request's answer as it arrives at the ingress."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from deployments.engines.protocol import EngineReply

if TYPE_CHECKING:
    from deployments.channel.receiver import AttachedReplica


class ReplicaLostError(RuntimeError):
    """The replica that worked on the request is gone."""

    def __init__(self, replica_id: str) -> None:
        super().__init__(f"replica {replica_id} is gone")
        self.replica_id = replica_id


class SlowReaderError(RuntimeError):
    """The caller reads more slowly than the model writes and its buffer is full."""


class TokenStream:
    """Buffers what a replica sends for one request, up to `max_bytes`; past that the stream fails.

    Everything runs on the ingress's event loop, so nothing is locked.
    """

    __slots__ = (
        "_chunks",
        "_failure",
        "_max_bytes",
        "_size",
        "_wake",
        "ended_at",
        "id",
        "replica",
        "reply",
        "taken_at",
    )

    def __init__(self, stream_id: str, max_bytes: int) -> None:
        self.id = stream_id
        self.replica: AttachedReplica | None = None
        self.reply: EngineReply | None = None
        self.taken_at: float | None = None
        """When a replica took it, on the monotonic clock, seconds."""
        self.ended_at: float | None = None
        """When its reply came, likewise."""
        self._chunks: list[bytes] = []
        self._size = 0
        self._max_bytes = max_bytes
        self._failure: Exception | None = None
        self._wake: asyncio.Future[None] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.reply is not None or self._failure is not None

    def feed(self, data: bytes) -> None:
        """Take in events. A full buffer fails the stream instead of growing."""
        if self.ended:
            return
        self._size += len(data)
        if self._size > self._max_bytes:
            self.fail(SlowReaderError(f"more than {self._max_bytes} bytes are waiting for the caller"))
            if self.replica is not None:
                self.replica.streams.pop(self.id, None)
            return
        self._chunks.append(data)
        self._notify()

    def finish(self, reply: EngineReply) -> None:
        """The replica is done."""
        self.reply = reply
        self.ended_at = time.monotonic()
        self._notify()

    def fail(self, error: Exception) -> None:
        """The answer will not be completed."""
        if not self.ended:
            self._failure = error
            self._notify()

    async def next(self) -> bytes | None:
        """All events that have arrived since the last call, or None at the end. Raises what the stream failed with."""
        while not self._chunks:
            if self._failure is not None:
                raise self._failure
            if self.reply is not None:
                return None
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._size = 0
        return data

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
