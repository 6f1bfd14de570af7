"""A trunk's connection to one replica of a pool. Every call ends within the time it is given."""

from __future__ import annotations

import os
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cluster.experts.costs import CostEstimate
from cluster.experts.dispatch import Candidate
from cluster.experts.pools import Holding, PoolMapError, Replica, parse_holding
from deployments.experts.wire import (
    HEADER,
    HELLO_S,
    MAX_GREETING_BYTES,
    MAX_JSON_BYTES,
    NONCE_BYTES,
    PAIR_BYTES,
    SUM_BYTES,
    FrameKind,
    Header,
    ProtocolError,
    Welcome,
    connect,
    frame,
    json_of,
    proof,
    proves,
    read_header,
    welcome_of,
)

FIRST_BUFFER_BYTES: Final = 1024 * 1024
WIDTHS: Final = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes of a number in the formats that an engine may compute in."""


class LinkError(Exception):
    """The replica cannot be used (any more); the message says why."""


@dataclass(frozen=True, slots=True)
class Model:
    """What a trunk and its pools have to agree on."""

    fingerprint: str
    dtype: str
    hidden: int


class Link:
    """Connected and proved on both sides; see `wire`. Raises `LinkError` from every method; then it is to be closed."""

    def __init__(self, replica: Replica, holds: Holding, model: Model, secret: bytes, timeout_s: float) -> None:
        self.replica = replica
        self.cost = CostEstimate()
        self.in_flight_rows = 0
        self.waiting_rows = 0
        """As the replica reported last."""
        self._unit = np.dtype(f"i{WIDTHS[model.dtype]}")
        self._grow(FIRST_BUFFER_BYTES)
        self._answer = bytearray(FIRST_BUFFER_BYTES)
        self._hidden = model.hidden
        self._row_bytes = model.hidden * WIDTHS[model.dtype]
        self._sequence = 0
        self._sent = 0.0
        self._timeout_s = 0.0
        try:
            self._socket = connect(replica.address, min(timeout_s, HELLO_S))
        except (OSError, ValueError) as error:
            raise LinkError(f"replica {replica.name!r} cannot be reached at {replica.address}: {error}") from None
        try:
            welcome = self._greet(secret, min(timeout_s, HELLO_S))
            _require(welcome, holds, model)
        except (OSError, ProtocolError, PoolMapError) as error:
            self.close()
            raise self._failed(error) from None
        self.wait_at_most(timeout_s)

    def wait_at_most(self, timeout_s: float) -> None:
        """Bound every later call."""
        if timeout_s != self._timeout_s:
            self._timeout_s = timeout_s
            # The kernel's own time limit: Python's would ask `poll` before each call.
            self._socket.settimeout(None)
            limit = struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1e6))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def candidate(self) -> Candidate:
        """As `cluster.experts.dispatch` sees it."""
        return Candidate(self.in_flight_rows + self.waiting_rows, self.cost.fixed_s, self.cost.row_s)

    def room(self, size: int) -> None:
        """Make `body`, three views of the body of the next request (see `packing`), long enough for `size` bytes."""
        if len(self._out) < HEADER.size + size:
            self._grow(2 * (HEADER.size + size))

    def _grow(self, size: int) -> None:
        self._out = bytearray(size)
        words, floats, units = (
            np.frombuffer(self._out, kind, offset=HEADER.size) for kind in ("<i4", "<f4", self._unit)
        )
        self.body = words, floats, units

    def request(self, layer: int, rows: int, pairs: int) -> None:
        """Send what was written for so many rows and pairs of row and expert."""
        self._sequence = (self._sequence + 1) % 2**32
        size = pairs * PAIR_BYTES + rows * self._row_bytes
        limit = int(self._timeout_s * 1e6)
        Header(FrameKind.REQUEST, self._sequence, layer, rows, pairs, size, limit).pack_into(self._out)
        self._sent = time.perf_counter()
        try:
            self._socket.sendall(memoryview(self._out)[: HEADER.size + size])
        except OSError as error:
            raise self._failed(error) from None
        self.in_flight_rows += rows

    def reply(self, rows: int) -> npt.NDArray[np.float32]:
        """Wait for the answer to the last request: sums for its `rows` rows (rows, hidden), good until the next call."""
        total = HEADER.size + rows * self._hidden * SUM_BYTES
        if len(self._answer) < total:
            self._answer = bytearray(2 * total)
        view = memoryview(self._answer)[:total]
        try:
            header = self._receive(view)
        except (OSError, ProtocolError) as error:
            raise self._failed(error) from None
        if header.kind != FrameKind.REPLY or header.sequence != self._sequence or header.rows != rows:
            raise LinkError(f"replica {self.replica.name!r} answered something else than it was asked")
        self.in_flight_rows -= rows
        self.waiting_rows = header.pairs
        self.cost.add(rows, time.perf_counter() - self._sent)
        return np.frombuffer(self._answer, "<f4", rows * self._hidden, HEADER.size).reshape(rows, self._hidden)

    def stats(self) -> dict[str, Any]:
        """Ask the replica for its report. Not between a request and its answer."""
        self._sequence = (self._sequence + 1) % 2**32
        try:
            self._socket.sendall(frame(FrameKind.STATS, self._sequence, b""))
            header, body = self._small(MAX_JSON_BYTES, self._timeout_s)
            if header.kind != FrameKind.STATS:
                raise ProtocolError("it does not report")
            return json_of(body)
        except (OSError, ProtocolError) as error:
            raise self._failed(error) from None

    def close(self) -> None:
        """Let go of it; idempotent."""
        self._socket.close()

    def _greet(self, secret: bytes, timeout_s: float) -> Welcome:
        challenge, theirs = self._small(NONCE_BYTES, timeout_s)
        if challenge.kind != FrameKind.CHALLENGE or len(theirs) != NONCE_BYTES:
            raise ProtocolError("it does not ask for the secret")
        mine = os.urandom(NONCE_BYTES)
        hello = {"nonce": mine.hex(), "proof": proof(secret, "trunk", mine, theirs)}
        self._socket.sendall(frame(FrameKind.HELLO, 0, hello))
        header, body = self._small(MAX_JSON_BYTES, timeout_s)
        if header.kind == FrameKind.ERROR:
            raise ProtocolError(body[:MAX_GREETING_BYTES].decode(errors="replace"))
        welcome, proved = welcome_of(body)
        if header.kind != FrameKind.WELCOME or not proves(proved, secret, "pool", theirs, mine):
            raise ProtocolError("it does not know the secret")
        return welcome

    def _small(self, limit: int, timeout_s: float) -> tuple[Header, bytes]:
        """A frame whose body has at most `limit` bytes."""
        until = time.monotonic() + timeout_s
        head = bytearray(HEADER.size)
        self._fill(memoryview(head), until)
        header = read_header(head)
        if header.body > limit:
            raise ProtocolError(f"a frame of {header.body} bytes is longer than it may be here")
        body = bytearray(header.body)
        self._fill(memoryview(body), until)
        return header, bytes(body)

    def _receive(self, view: memoryview) -> Header:
        """A frame that is as long as `view`; a shorter one is no answer and ends the link."""
        have = self._socket.recv_into(view)
        until = time.monotonic() + self._timeout_s
        while have < HEADER.size:
            have += self._more(view[have:], until)
        header = read_header(view)
        if header.kind == FrameKind.ERROR:
            text = bytes(view[HEADER.size : min(have, HEADER.size + header.body)])
            raise ProtocolError(text.decode(errors="replace"))
        if header.body != len(view) - HEADER.size:
            raise ProtocolError("its answer has another length than the rows that were sent")
        while have < len(view):
            have += self._more(view[have:], until)
        return header

    def _fill(self, view: memoryview, until: float) -> None:
        have = 0
        while have < len(view):
            have += self._more(view[have:], until)

    def _more(self, view: memoryview, until: float) -> int:
        if time.monotonic() > until:
            raise TimeoutError
        read = self._socket.recv_into(view)
        if not read:
            raise ConnectionResetError("it closed the connection")
        return read

    def _failed(self, error: Exception) -> LinkError:
        late = isinstance(error, BlockingIOError | TimeoutError)
        said = f"no answer within {self._timeout_s:g} s" if late else str(error)
        return LinkError(f"replica {self.replica.name!r} is left out: {said}")


def _require(welcome: Welcome, holds: Holding, model: Model) -> None:
    """Raises `ProtocolError` unless the pool serves this model and holds what the map says."""
    if welcome.fingerprint != model.fingerprint:
        raise ProtocolError("it serves another model")
    if (welcome.dtype, welcome.hidden) != (model.dtype, model.hidden):
        raise ProtocolError(f"it computes in {welcome.dtype}, the engine in {model.dtype}")
    held = parse_holding(welcome.holds, f"replica {welcome.name!r}")
    for layer, experts in holds.items():
        lacking = experts - held.get(layer, frozenset())
        if lacking:
            raise ProtocolError(f"it does not hold experts {sorted(lacking)} of layer {layer}")
