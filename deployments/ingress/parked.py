"""A stream whose beginning was not good enough, kept in case that nothing better comes."""

from __future__ import annotations

import asyncio
from typing import Final

from deployments.channel.stream import ReplicaLostError, SlowReaderError
from deployments.engines.protocol import TokenUsage
from deployments.ingress.dispatch import Answer, NoReplicaError, QueueFullError

BUFFERS: Final = 8
"""How many times the buffer of a stream it may make unread: another attempt lasts longer than a slow moment of a client."""


class Parked:
    """Reads on, so that the stream's own buffer stays small. `close` it, or `take` what came."""

    def __init__(self, answer: Answer, charged: TokenUsage, max_buffered_bytes: int) -> None:
        self.answer = answer
        self.charged = charged
        """What its request was charged for it so far."""
        self.lost = False
        """Whether it broke off, so that it cannot be sent any more."""
        self._left_bytes = BUFFERS * max_buffered_bytes
        self._pieces: list[bytes] = []
        self._reading = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        try:
            while (data := await self.answer.next()) is not None:
                self._pieces.append(data)
                self._left_bytes -= len(data)
                if self._left_bytes < 0:
                    raise SlowReaderError("a stream made too much before it was known whether it is sent")
        except (NoReplicaError, QueueFullError, ReplicaLostError, SlowReaderError):
            self.lost = True
            self._pieces.clear()
            self.answer.close()

    def take(self) -> bytes:
        """What came since it was parked; whoever calls this reads on."""
        self._reading.cancel()
        return b"".join(self._pieces)

    def close(self) -> None:
        """Free what it holds."""
        self._reading.cancel()
        self._pieces.clear()
        self.answer.close()
