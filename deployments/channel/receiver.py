"""The ingress's end of the channel: who is attached, what each stream has produced, and who died."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.experts.load import ExpertLoad
from cluster.records.precision_change import PrecisionChange
from deployments.channel.messages import (
    Accepted,
    Cancel,
    Changed,
    ChannelError,
    Ended,
    Events,
    Experts,
    Hello,
    LadderPosition,
    Leaving,
    Message,
    Order,
    Stats,
    encode_frame,
    read_frame,
)
from deployments.channel.sender import IngressAddress
from deployments.channel.stream import ReplicaLostError, TokenStream
from deployments.engines.protocol import EngineStats

_log = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 5.0

SILENCE_LIMIT_S = 4.0
"""A replica that has sent nothing for this long is hung: no request is routed to it until it speaks again."""


LOST_AFTER_S = 10.0
"""A replica that has sent nothing for this long is given up: its connection is cut, and its streams fail."""

SWEEP_S = 1.0


@dataclass(slots=True)
class AttachedReplica:
    """A replica with an open connection."""

    hello: Hello
    writer: asyncio.StreamWriter
    heard_at: float
    stats: EngineStats = field(default_factory=EngineStats)
    streams: dict[str, TokenStream] = field(default_factory=dict)
    leaving: str | None = None
    position: LadderPosition = field(default_factory=LadderPosition)
    """Where it stands on its precision ladder."""
    leads: bool = False
    """Whether it takes orders from this ingress."""
    load: ExpertLoad | None = None
    """Tokens by expert, as it told last; None: it has told nothing of experts."""

    def order(self, order: Order) -> None:
        """Have it go to another level."""
        if not self.writer.is_closing():
            self.writer.write(encode_frame([order]))

    def routable(self, now: float) -> bool:
        """Whether new requests may go there."""
        return self.leaving is None and now - self.heard_at < SILENCE_LIMIT_S


class Told(NamedTuple):
    """What a replica told of itself."""

    load: int
    """Requests that it runs or queues, as far as this ingress knows."""
    kv_usage: float
    """Fraction of its KV blocks in use, 0 to 1."""
    age_s: float
    """Seconds since it spoke."""


class ChannelReceiver:
    """Listens for replicas of one ingress."""

    def __init__(self, ingress_id: str, on_lost: Callable[[AttachedReplica], None] = lambda _: None) -> None:
        self._ingress_id = ingress_id
        self._secret = secrets.token_urlsafe(32)
        self._server: asyncio.Server | None = None
        self._replicas: dict[str, AttachedReplica] = {}
        self._waiting: dict[str, tuple[str, TokenStream]] = {}
        self._on_lost = on_lost
        self.on_changed: Callable[[PrecisionChange], None] = lambda _: None
        """Called when a replica has carried out an order of this ingress, or failed to."""
        self._sweeper: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    async def start(self, host: str) -> IngressAddress:
        """Listen on a free port of `host`; returns what replicas need to attach."""
        self._server = await asyncio.start_server(self._serve, host, 0, limit=1024 * 1024)
        self._sweeper = self._loop.create_task(self._sweep())
        port = self._server.sockets[0].getsockname()[1]
        return IngressAddress(self._ingress_id, host, port, self._secret)

    async def close(self) -> None:
        """Stop listening and drop every connection."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._server is not None:
            self._server.close()
        for replica in list(self._replicas.values()):
            replica.writer.close()

    def open_stream(self, stream: TokenStream, model: str) -> None:
        """Expect a stream from whichever replica of the model takes it.

        It fails with `ReplicaLostError` if the model's last replica goes before one has taken it: Serve would hold the
        request until a new replica has loaded.
        """
        self._waiting[stream.id] = (model, stream)

    def close_stream(self, stream: TokenStream) -> None:
        """Forget a stream. If a replica still works on it, tell it to stop."""
        self._waiting.pop(stream.id, None)
        replica = stream.replica
        if replica is not None:
            replica.streams.pop(stream.id, None)
            if stream.reply is None and not replica.writer.is_closing():
                replica.writer.write(encode_frame([Cancel(stream.id)]))

    def replicas(self, model: str) -> tuple[AttachedReplica, ...]:
        """The replicas of a model that new requests may go to."""
        now = self._loop.time()
        return tuple(r for r in self._replicas.values() if r.hello.model == model and r.routable(now))

    def attached(self) -> tuple[AttachedReplica, ...]:
        """All replicas with an open connection, also those that no request is routed to."""
        return tuple(self._replicas.values())

    def is_attached(self, replica_id: str) -> bool:
        """Whether the replica has an open connection."""
        return replica_id in self._replicas

    def told(self, replica_id: str) -> Told | None:
        """What is known of a replica that new requests may go to; None: none may."""
        now = self._loop.time()
        replica = self._replicas.get(replica_id)
        if replica is None or not replica.routable(now):
            return None
        stats = replica.stats
        return Told(max(len(replica.streams), stats.running + stats.waiting), stats.kv_usage, now - replica.heard_at)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        replica: AttachedReplica | None = None
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                first = await read_frame(reader, limit=64 * 1024)
            hello = first[0] if first else None
            # As bytes: for text, `compare_digest` raises on anything beyond ASCII.
            if not isinstance(hello, Hello) or not hmac.compare_digest(hello.secret.encode(), self._secret.encode()):
                _log.warning("refused a connection to the token channel: no valid invitation")
                return
            replica = AttachedReplica(hello, writer, self._loop.time())
            self._replicas[hello.replica_id] = replica
            self._handle(replica, first[1:])
            while True:
                self._handle(replica, await read_frame(reader))
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError, ChannelError, OSError) as error:
            if isinstance(error, ChannelError):
                _log.warning("cut a replica's connection: %s", error)
        finally:
            writer.close()
            if replica is not None:
                self._lost(replica)

    def _handle(self, replica: AttachedReplica, messages: list[Message]) -> None:
        replica.heard_at = self._loop.time()
        for message in messages:
            if isinstance(message, Events):
                stream = replica.streams.get(message.stream)
                if stream is not None:
                    stream.feed(message.data)
            elif isinstance(message, Accepted):
                self._accept(replica, message.stream)
            elif isinstance(message, Ended):
                stream = replica.streams.pop(message.stream, None)
                if stream is not None:
                    stream.finish(message.reply)
            elif isinstance(message, Stats):
                replica.stats, replica.position, replica.leads = message.stats, message.position, message.leads
            elif isinstance(message, Experts):
                replica.load = message.load
            elif isinstance(message, Changed):
                self.on_changed(message.change)
            elif isinstance(message, Leaving):
                replica.leaving = message.reason
                self._fail_untaken(replica.hello.model)

    def _accept(self, replica: AttachedReplica, stream_id: str) -> None:
        _, stream = self._waiting.pop(stream_id, (None, None))
        if stream is None or stream.ended:
            # The caller went away before the replica got to it.
            replica.writer.write(encode_frame([Cancel(stream_id)]))
            return
        stream.replica, stream.taken_at = replica, time.monotonic()
        replica.streams[stream_id] = stream

    async def _sweep(self) -> None:
        """Cut the connections of hung replicas: a stopped process keeps its sockets open."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now = self._loop.time()
            for replica in self.attached():
                if now - replica.heard_at > LOST_AFTER_S:
                    _log.warning("replica is silent, giving it up", extra={"replica": replica.hello.replica_id})
                    replica.writer.transport.abort()
            for model in {model for model, _ in self._waiting.values()}:
                self._fail_untaken(model)

    def _fail_untaken(self, model: str) -> None:
        """Give back the requests that no replica has taken, if there is none left to take them."""
        if self.replicas(model):
            return
        for wanted, stream in list(self._waiting.values()):
            if wanted == model:
                stream.fail(ReplicaLostError("that was chosen"))

    def _lost(self, replica: AttachedReplica) -> None:
        if self._replicas.get(replica.hello.replica_id) is replica:
            del self._replicas[replica.hello.replica_id]
        for stream in list(replica.streams.values()):
            stream.fail(ReplicaLostError(replica.hello.replica_id))
        replica.streams.clear()
        self._fail_untaken(replica.hello.model)
        if replica.leaving is None:
            self._on_lost(replica)
