"""A pool's server: answers trunks over sockets, one batch after the other in the order in which they came."""

from __future__ import annotations

import logging
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from cluster.experts.pools import holding_to_json
from deployments.experts.calls import Calls
from deployments.experts.peer import Peer
from deployments.experts.pool import ExpertPool, Prepared
from deployments.experts.quota import Quota
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
from deployments.telemetry.log_safety import Safe

_log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 256
MAX_UNSENT_BYTES: Final = 64 * 2**20
"""Of answers that a trunk does not read. It waits for them, so one that leaves them lying is broken."""
IDLE_S: Final = 0.5


@dataclass(slots=True)
class _Held:
    """An answer that is computed and not due yet."""

    peer: Peer
    answer: memoryview
    due: float


class PoolServer:
    """Serves an `ExpertPool` on listening sockets, in one thread: the one that calls `run`, which returns after `stop`.

    `pairs_per_s` bounds its speed: see `quota.Quota`. Raises `ValueError` for one that is not positive.
    """

    def __init__(
        self,
        pool: ExpertPool,
        listening: Sequence[socket.socket],
        name: str,
        fingerprint: str,
        secret: bytes,
        spin_s: float = 0.0,
        pairs_per_s: float | None = None,
    ) -> None:
        self._pool = pool
        self._listening = list(listening)
        self._name, self._fingerprint = name, fingerprint
        self._secret = secret
        self._spin_s = spin_s
        self._quota = Quota(pairs_per_s)
        self._held: _Held | None = None
        self._peers: dict[socket.socket, Peer] = {}
        self._queue: deque[Peer] = deque()
        self._waiting_rows = 0
        self._answer = bytearray()
        self._selector = selectors.DefaultSelector()
        self._calls = Calls()
        self._stopped = False
        self._refused = 0
        self._expired = 0

    def stop(self) -> None:
        """Make `run` return once the batch in work is done; from a signal handler or another thread."""
        self._stopped = True
        self._calls.wake()

    def adopt(self, prepared: Prepared) -> None:
        """Hold what was prepared from the next batch on; from another thread. Raises `TimeoutError` after 5 s."""
        self._calls.call(lambda: self._pool.adopt(prepared))

    def cut(self) -> None:
        """End all connections, as if the network had gone; from another thread. Raises `TimeoutError` after 5 s."""
        self._calls.call(self._close_all)

    def run(self) -> None:
        """Serve until `stop`."""
        for listening in self._listening:
            listening.setblocking(False)
            self._selector.register(listening, selectors.EVENT_READ)
        self._selector.register(self._calls.descriptor, selectors.EVENT_READ)
        idle_since = looked_at = time.monotonic()
        try:
            while not self._stopped:
                spinning = self._spin_s > 0 and time.monotonic() - idle_since < self._spin_s
                for key, events in self._selector.select(0 if spinning else self._wait_s()):
                    ready = key.fileobj
                    if not isinstance(ready, socket.socket):
                        self._calls.run()
                    elif ready in self._peers:
                        self._serve(self._peers[ready], events)
                    elif ready in self._listening:
                        self._accept(ready)
                if self._held is not None:
                    self._release(self._held)
                elif self._queue:
                    self._work(self._queue.popleft())
                    idle_since = time.monotonic()
                if time.monotonic() - looked_at >= IDLE_S:
                    looked_at = time.monotonic()
                    self._cut_silent()
        finally:
            self._close_all()
            self._selector.close()
            self._calls.close()
            for listening in self._listening:
                listening.close()

    def _wait_s(self) -> float:
        if self._held is not None:
            return min(max(self._held.due - time.monotonic(), 0.0), IDLE_S)
        return 0.0 if self._queue else IDLE_S

    def _close_all(self) -> None:
        for peer in list(self._peers.values()):
            self._close(peer)

    def _accept(self, listening: socket.socket) -> None:
        # Whoever connects and goes at once must not end what others use.
        with suppress(OSError):
            connected, _ = listening.accept()
            if len(self._peers) >= MAX_CONNECTIONS:
                connected.close()
                return
            peer = Peer(connected, os.urandom(NONCE_BYTES), time.monotonic())
            self._peers[connected] = peer
            self._selector.register(connected, selectors.EVENT_READ)
            try:
                connected.setblocking(False)
                tune(connected)
                self._send(peer, frame(FrameKind.CHALLENGE, 0, peer.nonce))
            except OSError:
                self._close(peer)

    def _cut_silent(self) -> None:
        oldest = time.monotonic() - HELLO_S
        for peer in [p for p in self._peers.values() if not p.trusted and p.since < oldest]:
            self._close(peer)

    def _serve(self, peer: Peer, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._flush(peer)
            if events & selectors.EVENT_READ:
                self._read(peer)
        except ProtocolError as error:
            self._cut(peer, error)
        except OSError:
            self._close(peer)

    def _read(self, peer: Peer) -> None:
        """Take in what is there, and queue the peer if that completes a frame."""
        if peer.have == len(peer.buffer):
            raise ProtocolError("the peer goes on sending while its request waits")
        read = peer.socket.recv_into(memoryview(peer.buffer)[peer.have :])
        if not read:
            raise ConnectionResetError
        peer.have += read
        if not peer.queued:
            self._look(peer)

    def _look(self, peer: Peer) -> None:
        """Answer whole frames at the beginning of the buffer at once, save requests, which queue."""
        while peer.have >= HEADER.size and not peer.queued:
            header = read_header(peer.buffer)
            self._check(peer, header)
            size = HEADER.size + header.body
            if peer.have < size:
                if len(peer.buffer) < size:
                    peer.buffer.extend(bytes(size - len(peer.buffer)))
                return
            if header.kind == FrameKind.REQUEST:
                peer.queued = True
                peer.arrived = time.monotonic()
                self._waiting_rows += header.rows
                self._queue.append(peer)
                return
            body = bytes(memoryview(peer.buffer)[HEADER.size : size])
            peer.drop(size)
            if header.kind == FrameKind.HELLO:
                self._greet(peer, body)
            else:
                self._send(peer, frame(FrameKind.STATS, header.sequence, self.report()))

    def _check(self, peer: Peer, header: Header) -> None:
        """Raises `ProtocolError` for a frame that this peer may not send, before its body is read."""
        if not peer.trusted:
            if header.kind != FrameKind.HELLO or header.body > MAX_GREETING_BYTES or header.rows:
                raise ProtocolError("a peer has to prove first that it knows the secret")
        elif header.kind == FrameKind.REQUEST:
            self._pool.require(header)
        elif header.kind != FrameKind.STATS or header.body or header.rows:
            raise ProtocolError(f"a frame of kind {header.kind} is not for a pool")

    def _work(self, peer: Peer) -> None:
        """Compute the request at the beginning of a peer's buffer."""
        header = read_header(peer.buffer)
        size = HEADER.size + header.body
        self._waiting_rows -= header.rows
        peer.queued = False
        if peer.socket not in self._peers:
            return
        try:
            self._compute(peer, header, memoryview(peer.buffer)[HEADER.size : size])
            peer.drop(size)
            self._look(peer)
        except ProtocolError as error:
            self._cut(peer, error)
        except OSError:
            self._close(peer)
        except Exception as error:  # noqa: BLE001 - what one trunk asked for must not end what others use
            _log.exception("a batch could not be computed")
            self._cut(peer, ProtocolError(f"the batch could not be computed ({type(error).__name__})"))

    def _compute(self, peer: Peer, header: Header, body: memoryview) -> None:
        if time.monotonic() - peer.arrived > header.microseconds / 1e6:
            # The trunk has given it up and asked somebody else.
            self._expired += 1
            return
        size = HEADER.size + self._pool.reply_bytes(header)
        if len(self._answer) < size:
            # A new one: an answer that is held back still looks into the old.
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
        if self._quota.pairs_per_s is not None:
            self._held = _Held(peer, answer, self._quota.done_at(self._pool.count(header, body), peer.arrived))
            return
        self._send(peer, answer)
        # While the trunk goes on.
        self._pool.count(header, body)

    def _release(self, held: _Held) -> None:
        if held.due > time.monotonic():
            return
        self._held = None
        if held.peer.socket not in self._peers:
            return
        try:
            self._send(held.peer, held.answer)
        except ProtocolError as error:
            self._cut(held.peer, error)
        except OSError:
            self._close(held.peer)

    def _greet(self, peer: Peer, body: bytes) -> None:
        hello = json_of(body)
        try:
            theirs = bytes.fromhex(str(hello.get("nonce")))
        except ValueError:
            theirs = b""
        if len(theirs) != NONCE_BYTES or not proves(hello.get("proof"), self._secret, "trunk", theirs, peer.nonce):
            raise ProtocolError("the peer does not know the secret")
        peer.trusted = True
        mine = proof(self._secret, "pool", peer.nonce, theirs)
        pool = self._pool
        holds = holding_to_json(pool.holds)
        welcome = Welcome(self._name, self._fingerprint, pool.dtype, pool.hidden, MAX_ROWS, holds)
        self._send(peer, frame(FrameKind.WELCOME, 0, welcome.to_json(mine)))

    def _send(self, peer: Peer, data: bytes | memoryview) -> None:
        sent = 0
        if not peer.unsent:
            with suppress(BlockingIOError):
                sent = peer.socket.send(data)
        if sent < len(data):
            # One answer is taken however long it is; a trunk that reads asks for no second one meanwhile.
            if peer.unsent and len(peer.unsent) + len(data) - sent > MAX_UNSENT_BYTES:
                raise ProtocolError("the peer does not read its answers")
            peer.unsent += data[sent:]
            self._selector.modify(peer.socket, selectors.EVENT_READ | selectors.EVENT_WRITE)

    def _flush(self, peer: Peer) -> None:
        with suppress(BlockingIOError):
            sent = peer.socket.send(peer.unsent)
            del peer.unsent[:sent]
        if not peer.unsent:
            self._selector.modify(peer.socket, selectors.EVENT_READ)

    def _cut(self, peer: Peer, error: ProtocolError) -> None:
        self._refused += 1
        _log.warning("a connection was cut: %s", Safe(str(error)))
        with suppress(OSError):
            peer.socket.send(frame(FrameKind.ERROR, 0, str(error).encode()[:1024]))
        self._close(peer)

    def _close(self, peer: Peer) -> None:
        if self._peers.pop(peer.socket, None) is not None:
            self._selector.unregister(peer.socket)
            peer.socket.close()

    def report(self) -> dict[str, Any]:
        """What the pool holds and did, what waits, and the memory of this process apart from its weights, in bytes.

        On any thread.
        """
        from deployments.experts.memory import process_memory

        rss, pss = process_memory()
        return {
            **self._pool.report(),
            "name": self._name,
            "pairs_per_s": self._quota.pairs_per_s,
            "pid": os.getpid(),
            "rss_bytes": rss,
            "pss_bytes": pss,
            "overhead_bytes": max(0, pss - self._pool.weight_bytes),
            "queue_batches": len(self._queue),
            "queue_rows": self._waiting_rows,
            "trunks": sum(peer.trusted for peer in list(self._peers.values())),
            "cut_off": self._refused,
            "expired": self._expired,
        }
