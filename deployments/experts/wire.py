"""Frames between an engine without experts (a trunk) and the pools that hold them. Nothing is ever unpickled.

A frame is a header of 32 bytes and a body whose length the header gives; both ends refuse what is longer than it may be.
Numbers are little-endian. The peers prove to each other that they know a secret, without sending it:

    pool  -> trunk   CHALLENGE  32 random bytes
    trunk -> pool    HELLO      JSON: proof, random bytes of its own
    pool  -> trunk   WELCOME    JSON: proof, what it holds, of which model
    trunk -> pool    REQUEST    of each pair of row and expert the row's place below (int32), the expert (int32) and its weight
                                (float32), each kind of number together, sorted by expert; then the rows, in the engine's
                                number format
    pool  -> trunk   REPLY      the weighted sum of the experts for each of the rows (float32)
    trunk -> pool    STATS      answered with STATS: JSON
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, NamedTuple

PROTOCOL: Final = 4
MAGIC: Final = b"PX"
HEADER: Final = struct.Struct("<2sBBIIIIII4x")
NONCE_BYTES: Final = 32
MAX_GREETING_BYTES: Final = 4096
"""Body of a frame from a peer that has not proved itself yet."""
MAX_JSON_BYTES: Final = 8 * 2**20
PAIR_BYTES: Final = 12
SUM_BYTES: Final = 4
"""Of a number in a REPLY."""
MAX_ROWS: Final = 65_536
SOCKET_BUFFER_BYTES: Final = 4 * 2**20
HELLO_S: Final = 5.0
"""Seconds that a peer has to prove itself."""


class ProtocolError(Exception):
    """The peer sent what it must not; the connection cannot be used any more."""


class FrameKind(IntEnum):
    """What a frame is."""

    CHALLENGE = 1
    HELLO = 2
    WELCOME = 3
    REQUEST = 4
    REPLY = 5
    STATS = 6
    ERROR = 7


class Header(NamedTuple):
    """The head of a frame."""

    kind: int
    sequence: int
    """Given by who asks, repeated in the answer."""
    layer: int = 0
    rows: int = 0
    pairs: int = 0
    """In a REQUEST: of row and expert; in a REPLY: rows that wait at the pool."""
    body: int = 0
    """Bytes that follow."""
    microseconds: int = 0
    """In a REQUEST: how long the trunk waits for an answer; in a REPLY: how long the computation took."""

    def pack_into(self, buffer: bytearray | memoryview) -> None:
        """Write it to the beginning of `buffer`."""
        HEADER.pack_into(buffer, 0, MAGIC, PROTOCOL, *self)

    def pack(self) -> bytes:
        """As bytes."""
        return HEADER.pack(MAGIC, PROTOCOL, *self)


def read_header(buffer: bytes | bytearray | memoryview) -> Header:
    """The head at the beginning of `buffer`. Raises `ProtocolError` if it is none of this protocol's version."""
    magic, version, *fields = HEADER.unpack_from(buffer)
    if magic != MAGIC or version != PROTOCOL:
        raise ProtocolError("the peer does not speak this protocol, or another version of it")
    return Header(*fields)


@dataclass(frozen=True, slots=True)
class Welcome:
    """What a pool says of itself."""

    name: str
    fingerprint: str
    """Of the checkpoint; see `weights.Checkpoint.fingerprint`."""
    dtype: str
    hidden: int
    max_rows: int
    holds: dict[str, list[int]]

    def to_json(self, proof: str) -> bytes:
        """The body of a WELCOME."""
        return json.dumps(
            {
                "proof": proof,
                "name": self.name,
                "fingerprint": self.fingerprint,
                "dtype": self.dtype,
                "hidden": self.hidden,
                "max_rows": self.max_rows,
                "holds": self.holds,
            }
        ).encode()


def welcome_of(body: bytes) -> tuple[Welcome, str]:
    """Reads `Welcome.to_json`; the proof comes second. Raises `ProtocolError`."""
    value = json_of(body)
    texts = [value.get(key) for key in ("name", "fingerprint", "dtype", "proof")]
    numbers = [value.get(key) for key in ("hidden", "max_rows")]
    holds = value.get("holds")
    if not (all(isinstance(t, str) for t in texts) and all(type(n) is int and n > 0 for n in numbers)):
        raise ProtocolError("the pool's welcome lacks fields")
    if not isinstance(holds, dict):
        raise ProtocolError("the pool does not say what it holds")
    name, fingerprint, dtype, proof = map(str, texts)
    hidden, max_rows = (int(n) for n in numbers if n is not None)
    return Welcome(name, fingerprint, dtype, hidden, max_rows, holds), proof


def json_of(body: bytes | memoryview) -> dict[str, Any]:
    """A body that is a JSON object. Raises `ProtocolError`."""
    try:
        value = json.loads(bytes(body))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ProtocolError("the peer sent something that is no JSON object")
    return value


def proof(secret: bytes, who: str, mine: bytes, theirs: bytes) -> str:
    """That `who` ("trunk" or "pool") knows the secret, for the random bytes of both."""
    return hmac.new(secret, who.encode() + b"\0" + mine + theirs, hashlib.sha256).hexdigest()


def proves(given: object, secret: bytes, who: str, mine: bytes, theirs: bytes) -> bool:
    """Whether `given` is that proof."""
    return isinstance(given, str) and hmac.compare_digest(
        given.encode("utf-8", "replace"), proof(secret, who, mine, theirs).encode()
    )


def listen(address: str) -> socket.socket:
    """A listening socket. A socket file that nobody listens on any more is replaced. Raises `OSError`, `ValueError`."""
    scheme, _, rest = address.partition(":")
    if scheme == "unix":
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        _remove_stale(rest)
        # Nobody but this user may connect, whatever the mask is.
        before = os.umask(0o177)
        try:
            listening.bind(rest)
        finally:
            os.umask(before)
    elif scheme == "tcp":
        host, port = _host_and_port(rest)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    else:
        raise ValueError(f"{address!r} is no address: unix:/path or tcp:host:port")
    listening.listen(64)
    return listening


def address_of(listening: socket.socket) -> str:
    """The address under which a listening socket is reached; the port is the true one where 0 was asked for."""
    name = listening.getsockname()
    return f"unix:{name}" if listening.family == socket.AF_UNIX else f"tcp:{name[0]}:{name[1]}"


def connect(address: str, timeout_s: float) -> socket.socket:
    """A blocking connection whose calls end after `timeout_s`. Raises `OSError`, `ValueError`."""
    scheme, _, rest = address.partition(":")
    if scheme == "unix":
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connected.settimeout(timeout_s)
            connected.connect(rest)
        except OSError:
            connected.close()
            raise
    elif scheme == "tcp":
        connected = socket.create_connection(_host_and_port(rest), timeout_s)
    else:
        raise ValueError(f"{address!r} is no address: unix:/path or tcp:host:port")
    tune(connected)
    return connected


def tune(connected: socket.socket) -> None:
    """Options that both ends of a connection want: room for a whole frame, and no waiting to fill a packet."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
    if connected.family != socket.AF_UNIX:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def frame(kind: FrameKind, sequence: int, body: bytes | Mapping[str, Any]) -> bytes:
    """A whole small frame; a mapping goes out as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(dict(body)).encode()
    return Header(kind, sequence, body=len(content)).pack() + content


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _remove_stale(path: str) -> None:
    if not Path(path).is_socket():
        return
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.settimeout(1.0)
        probe.connect(path)
    except ConnectionRefusedError:
        Path(path).unlink(missing_ok=True)
    except OSError:
        # Somebody may be there; `bind` will say that the address is taken.
        return
    finally:
        probe.close()
