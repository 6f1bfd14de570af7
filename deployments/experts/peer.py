"""What a pool's server keeps of each trunk that is connected."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Final

FIRST_BUFFER_BYTES: Final = 256 * 1024


@dataclass(slots=True, eq=False)
class Peer:
    """A connected trunk."""

    socket: socket.socket
    nonce: bytes
    since: float
    trusted: bool = False
    buffer: bytearray = field(default_factory=lambda: bytearray(FIRST_BUFFER_BYTES))
    have: int = 0
    """Bytes in `buffer`."""
    unsent: bytearray = field(default_factory=bytearray)
    queued: bool = False
    """Its frame at the beginning of `buffer` is a whole request that waits to be worked on."""
    arrived: float = 0.0

    def drop(self, size: int) -> None:
        """Forget the frame at the beginning of the buffer, which has so many bytes."""
        self.have -= size
        if self.have:
            self.buffer[: self.have] = self.buffer[size : size + self.have]
