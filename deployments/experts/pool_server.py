"""A pool's server: answers trunks over sockets, one batch after the other in the order in which they came."""

from __future__ import annotations

import logging
import os
import selectors
import socket
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from deployments.experts.pool import ExpertPool
from deployments.experts.wire import (
    HEADER,
    HELLO_S,
    MAX_GREETING_BYTES,
    MAX_ROWS,
    NONCE_BYTES,
    FrameKind,
    Header,
    ProtocolError,
    Welcome,
    frame,
    json_of,
    proof,
    proves,
    read_header,
    tune,
)

_log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 256
MAX_UNSENT_BYTES: Final = 64 * 2**20
"""Of answers that a trunk does not read. It waits for them, so one that leaves them lying is broken."""
FIRST_BUFFER_BYTES: Final = 256 * 1024
IDLE_S: Final = 0.5


@dataclass(slots=True, eq=False)
class _Peer:
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
    """Its frame at the beginning of `buffer` is whole and waits to be worked on."""
    arrived: float = 0.0


class PoolServer:
    """Serves an `ExpertPool` on a listening socket. One thread; `run` returns after `stop`."""

    def __init__(
        self,
        pool: ExpertPool,
        listening: socket.socket,
        name: str,
        fingerprint: str,
        secret: bytes,
        spin_s: float = 0.0,
    ) -> None:
        self._pool = pool
        self._listening = listening
        self._welcome = Welcome(
            name, fingerprint, pool.dtype, pool.hidden, MAX_ROWS, {str(n): sorted(e) for n, e in pool.holds.items()}
        )
        self._secret = secret
        self._spin_s = spin_s
        self._peers: dict[socket.socket, _Peer] = {}
        self._queue: deque[_Peer] = deque()
        self._waiting_rows = 0
        self._answer = bytearray(FIRST_BUFFER_BYTES)
        self._selector = selectors.DefaultSelector()
        self._stopped = False
        self._refused = 0
        self._expired = 0

    def stop(self) -> None:
        """Make `run` return; from a signal handler or another thread, within `IDLE_S`."""
        self._stopped = True

    def run(self) -> None:
        """Serve until `stop`."""
        self._listening.setblocking(False)
        self._selector.register(self._listening, selectors.EVENT_READ)
        try:
            idle_since = time.monotonic()
            while not self._stopped:
                spinning = self._spin_s > 0 and time.monotonic() - idle_since < self._spin_s
                for key, events in self._selector.select(0 if self._queue or spinning else IDLE_S):
                    if key.fileobj is self._listening:
                        self._accept()
                    else:
                        self._serve(self._peers[key.fileobj], events)  # type: ignore[index] # all others are peers' sockets
                if self._queue:
                    self._work(self._queue.popleft())
                    idle_since = time.monotonic()
                elif not spinning:
                    self._cut_silent()
        finally:
            for peer in list(self._peers.values()):
                self._close(peer)
            self._selector.close()
            self._listening.close()

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            connected, _ = self._listening.accept()
            if len(self._peers) >= MAX_CONNECTIONS:
                connected.close()
                return
            connected.setblocking(False)
            tune(connected)
            peer = _Peer(connected, os.urandom(NONCE_BYTES), time.monotonic())
            self._peers[connected] = peer
            self._selector.register(connected, selectors.EVENT_READ)
            self._send(peer, frame(FrameKind.CHALLENGE, 0, peer.nonce))

    def _cut_silent(self) -> None:
        oldest = time.monotonic() - HELLO_S
        for peer in [p for p in self._peers.values() if not p.trusted and p.since < oldest]:
            self._close(peer)

    def _serve(self, peer: _Peer, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._flush(peer)
            if events & selectors.EVENT_READ and not peer.queued:
                self._read(peer)
        except ProtocolError as error:
            self._cut(peer, error)
        except OSError:
            self._close(peer)

    def _read(self, peer: _Peer) -> None:
        """Take in what is there, and queue the peer if that completes a frame."""
        read = peer.socket.recv_into(memoryview(peer.buffer)[peer.have :])
        if not read:
            raise ConnectionResetError
        peer.have += read
        self._look(peer)

    def _look(self, peer: _Peer) -> None:
        if peer.have < HEADER.size:
            return
        header = read_header(peer.buffer)
        self._check(peer, header)
        size = HEADER.size + header.body
        if peer.have >= size:
            peer.queued = True
            peer.arrived = time.monotonic()
            self._waiting_rows += header.rows
            self._queue.append(peer)
        elif len(peer.buffer) < size:
            peer.buffer.extend(bytes(size - len(peer.buffer)))

    def _check(self, peer: _Peer, header: Header) -> None:
        """Raises `ProtocolError` for a frame that this peer may not send, before its body is read."""
        if not peer.trusted:
            if header.kind != FrameKind.HELLO or header.body > MAX_GREETING_BYTES or header.rows:
                raise ProtocolError("a peer has to prove first that it knows the secret")
        elif header.kind == FrameKind.REQUEST:
            if not (0 < header.rows <= MAX_ROWS and header.rows <= header.pairs <= MAX_ROWS * 16):
                raise ProtocolError(f"{header.rows} rows with {header.pairs} pairs are more or fewer than are taken")
            if header.body != self._pool.body_bytes(header):
                raise ProtocolError("the body is not as long as its rows and pairs are")
        elif header.kind != FrameKind.STATS or header.body or header.rows:
            raise ProtocolError(f"a frame of kind {header.kind} is not for a pool")

    def _work(self, peer: _Peer) -> None:
        """Answer the frame at the beginning of a peer's buffer."""
        header = read_header(peer.buffer)
        size = HEADER.size + header.body
        self._waiting_rows -= header.rows
        peer.queued = False
        if peer.socket not in self._peers:
            return
        try:
            self._do(peer, header, memoryview(peer.buffer)[HEADER.size : size])
            peer.have -= size
            if peer.have:
                peer.buffer[: peer.have] = peer.buffer[size : size + peer.have]
                self._look(peer)
        except ProtocolError as error:
            self._cut(peer, error)
        except OSError:
            self._close(peer)

    def _do(self, peer: _Peer, header: Header, body: memoryview) -> None:
        if header.kind == FrameKind.REQUEST:
            self._compute(peer, header, body)
        elif header.kind == FrameKind.HELLO:
            self._greet(peer, body)
        else:
            self._send(peer, frame(FrameKind.STATS, header.sequence, self.report()))

    def _compute(self, peer: _Peer, header: Header, body: memoryview) -> None:
        if time.monotonic() - peer.arrived > header.microseconds / 1e6:
            # The trunk has given it up and asked somebody else.
            self._expired += 1
            return
        size = HEADER.size + header.rows * self._pool.row_bytes
        if len(self._answer) < size:
            # A new one: tensors still look into the old.
            self._answer = bytearray(size)
        answer = memoryview(self._answer)[:size]
        took = self._pool.compute(header, body, answer[HEADER.size :])
        Header(
            FrameKind.REPLY,
            header.sequence,
            header.layer,
            header.rows,
            self._waiting_rows,
            size - HEADER.size,
            min(int(took * 1e6), 2**32 - 1),
        ).pack_into(answer)
        self._send(peer, answer)

    def _greet(self, peer: _Peer, body: memoryview) -> None:
        hello = json_of(body)
        try:
            theirs = bytes.fromhex(str(hello.get("nonce")))
        except ValueError:
            theirs = b""
        if len(theirs) != NONCE_BYTES or not proves(hello.get("proof"), self._secret, "trunk", theirs, peer.nonce):
            raise ProtocolError("the peer does not know the secret")
        peer.trusted = True
        mine = proof(self._secret, "pool", peer.nonce, theirs)
        self._send(peer, frame(FrameKind.WELCOME, 0, self._welcome.to_json(mine)))

    def _send(self, peer: _Peer, data: bytes | memoryview) -> None:
        sent = 0
        if not peer.unsent:
            with suppress(BlockingIOError):
                sent = peer.socket.send(data)
        if sent < len(data):
            if len(peer.unsent) + len(data) - sent > MAX_UNSENT_BYTES:
                raise ProtocolError("the peer does not read its answers")
            peer.unsent += data[sent:]
            self._selector.modify(peer.socket, selectors.EVENT_READ | selectors.EVENT_WRITE)

    def _flush(self, peer: _Peer) -> None:
        with suppress(BlockingIOError):
            sent = peer.socket.send(peer.unsent)
            del peer.unsent[:sent]
        if not peer.unsent:
            self._selector.modify(peer.socket, selectors.EVENT_READ)

    def _cut(self, peer: _Peer, error: ProtocolError) -> None:
        self._refused += 1
        _log.warning("a connection was cut: %s", error)
        with suppress(OSError):
            peer.socket.send(frame(FrameKind.ERROR, 0, str(error).encode()[:1024]))
        self._close(peer)

    def _close(self, peer: _Peer) -> None:
        if self._peers.pop(peer.socket, None) is not None:
            self._selector.unregister(peer.socket)
            peer.socket.close()

    def report(self) -> dict[str, Any]:
        """What the pool holds and did, what waits, and the memory of this process apart from its weights, in bytes."""
        from deployments.experts.memory import process_memory

        rss, pss = process_memory()
        return {
            **self._pool.report(),
            "name": self._welcome.name,
            "pid": os.getpid(),
            "rss_bytes": rss,
            "pss_bytes": pss,
            "overhead_bytes": max(0, pss - self._pool.weight_bytes),
            "queue_batches": len(self._queue),
            "queue_rows": self._waiting_rows,
            "trunks": sum(peer.trusted for peer in self._peers.values()),
            "cut_off": self._refused,
            "expired": self._expired,
        }
