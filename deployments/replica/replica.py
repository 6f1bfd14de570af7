"""One replica of a model: an engine, its watcher, and the connections to the ingresses."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from cluster.api.errors import ApiError
from cluster.experts.load import ExpertLoad
from cluster.precision.measures import PINNED
from cluster.records.precision_change import PrecisionChange
from deployments.channel.messages import Accepted, Changed, Ended, Events, Hello, Leaving, Order, Stats
from deployments.channel.sender import IngressAddress, IngressConnection, connect
from deployments.engines.protocol import (
    Engine,
    EngineDeadError,
    EngineReply,
    EngineStartError,
    EngineStats,
)
from deployments.replica.ladder import ReplicaLadder
from deployments.replica.spec import ReplicaCall
from deployments.replica.tracing import ReplicaSpan, ReplicaTracer
from deployments.replica.watcher import EngineWatcher, WatchLimits
from deployments.telemetry.log_safety import Safe

_log = logging.getLogger(__name__)

STATS_PERIOD_S = 0.25
SIGN_OF_LIFE_S = 1.0
MAX_UNTOLD = 32
"""Changes of precision that are kept until an ingress is there to be told."""
MAX_REPLY_BYTES = 8 * 1024 * 1024
"""Of a whole answer: it crosses the channel in one piece, between the tokens of all other callers."""
EXIT_ENGINE_LOST = 70
"""Exit status of a replica that gives itself up; sysexits.h calls it EX_SOFTWARE."""


class Replica:
    """Serves calls of ingresses. Free of Ray, so that tests drive it directly."""

    def __init__(
        self,
        name: str,
        replica_id: str,
        engine: Engine,
        tracer: ReplicaTracer,
        limits: WatchLimits,
        before_exit: Callable[[], None] = lambda: None,
    ) -> None:
        self._name = name
        self._replica_id = replica_id
        self._engine = engine
        self._tracer = tracer
        self._limits = limits
        self._before_exit = before_exit
        self._connections: dict[str, IngressConnection] = {}
        self._connecting: dict[str, asyncio.Lock] = {}
        self._running: dict[str, asyncio.Task[EngineReply]] = {}
        self._owners: dict[str, str] = {}
        self._spans: dict[str, ReplicaSpan] = {}
        self._ladder = ReplicaLadder(name, replica_id, engine, self._changed, self._send_stats)
        self._untold: deque[PrecisionChange] = deque(maxlen=MAX_UNTOLD)
        self._orders: set[asyncio.Task[None]] = set()
        self._background: list[asyncio.Task[None]] = []
        self._beat: asyncio.Task[None] | None = None
        self._beat_again = False
        self._leaving = False

    async def start(self, limit_s: float | None = None) -> None:
        """Load the model within `limit_s` seconds (None: however long it takes). Raises `EngineStartError`.

        A load that runs in a thread cannot be stopped here: the caller has to end this process, as Serve does.
        """
        limit = asyncio.timeout(limit_s)
        try:
            async with limit:
                await self._engine.start()
        except TimeoutError as error:
            if not limit.expired():
                raise
            self._kill_engine()
            raise EngineStartError(
                f"model {self._name!r} was not loaded within {limit_s:g} s; "
                f"if it needs longer, raise `models.{self._name}.replicas.start_timeout_s`"
            ) from error
        loop = asyncio.get_running_loop()
        self._background = [loop.create_task(self._watch()), loop.create_task(self._report())]

    async def attach(self, address: IngressAddress) -> None:
        """Connect to an ingress unless already connected. Raises `OSError` if it cannot be reached."""
        lock = self._connecting.setdefault(address.ingress_id, asyncio.Lock())
        async with lock:
            present = self._connections.get(address.ingress_id)
            if present is not None and present.open:
                return
            ingress_id = address.ingress_id
            engine = self._engine
            hello = Hello(
                address.secret,
                self._replica_id,
                self._name,
                engine.kind,
                os.getpid(),
                engine.pids(),
                engine.weights,
                engine.kv_precisions,
                engine.kv_blockers,
                *engine.sampling_defaults,
                engine.expert_blockers,
            )
            connection = await connect(
                address,
                hello,
                self._cancel,
                lambda: self._ingress_lost(ingress_id, connection),
                lambda order: self._obey(ingress_id, order),
            )
            self._connections[ingress_id] = connection
            connection.send_stats(self._told(ingress_id), 0.0, 0.0)
            self._tell_changes()
            if self._leaving:
                connection.send(Leaving("draining"))

    async def serve(self, call: ReplicaCall) -> None:
        """Serve one call to its end. The answer goes over the channel; this only lasts as long as the request does.

        So Serve counts the request as ongoing: its drain waits for it and its autoscaler sees it.
        """
        await self.attach(call.ingress)
        connection = self._connections[call.ingress.ingress_id]
        connection.send(Accepted(call.stream))
        task = asyncio.get_running_loop().create_task(self._run(call, connection))
        self._running[call.stream] = task
        self._owners[call.stream] = call.ingress.ingress_id
        try:
            reply = await task
        except EngineDeadError as error:
            # Not reported as an answer: the replica ends, its connections break, and the ingress tries another one.
            self._give_up(str(error))
            raise
        except asyncio.CancelledError:
            task.cancel()
            reply = EngineReply(status=499)
        except Exception as error:  # noqa: BLE001 - one request's failure is one error answer, whatever it was
            _log.exception("request failed", extra={"request_id": call.request.request_id})
            reply = EngineReply(status=500, body=_internal_error(error))
        finally:
            self._running.pop(call.stream, None)
            self._owners.pop(call.stream, None)
        connection.send(Ended(call.stream, _within_bounds(reply)))
        self._refresh_stats()

    async def _run(self, call: ReplicaCall, connection: IngressConnection) -> EngineReply:
        stream = call.stream
        with self._tracer.request(call.request, self._replica_id) as span:
            request = replace(call.request, trace_headers=span.trace_headers)
            self._spans[stream] = span
            try:
                reply = await self._engine.run(request, lambda data: connection.send(Events(stream, data)))
            finally:
                del self._spans[stream]
            span.finished(reply)
            return reply

    @property
    def pressed_level(self) -> int:
        """Level of the precision ladder that pressure has brought it to; 0 where an operator holds it."""
        position = self._ladder.position
        return 0 if position.cause == PINNED else position.level

    def stats(self) -> EngineStats:
        """The engine's own numbers."""
        return self._engine.stats()

    def expert_load(self) -> ExpertLoad | None:
        """Tokens by expert, where the engine tells."""
        return self._engine.expert_load()

    def check(self) -> None:
        """Raises `EngineDeadError` once the watcher has ended: Serve's own health check."""
        if any(task.done() for task in self._background):
            raise EngineDeadError(f"replica {self._replica_id} has stopped watching its engine")

    async def drain(self) -> None:
        """Tell every ingress to send nothing more, let what runs finish, then free the engine."""
        self._leaving = True
        for connection in self._connections.values():
            connection.send(Leaving("draining"))
        while self._running:
            await asyncio.sleep(0.05)
        for task in (*self._background, *self._orders):
            task.cancel()
        await self._engine.close()
        for connection in list(self._connections.values()):
            await connection.close()

    def _cancel(self, stream: str) -> None:
        task = self._running.get(stream)
        if task is not None:
            task.cancel()

    def _ingress_lost(self, ingress_id: str, connection: IngressConnection) -> None:
        """The ingress is gone, and with it every caller it spoke for."""
        if self._connections.get(ingress_id) is connection:
            del self._connections[ingress_id]
            # An ingress that starts anew has another name, so its lock is of no use any more.
            if not self._connecting[ingress_id].locked():
                del self._connecting[ingress_id]
        for stream, owner in list(self._owners.items()):
            if owner == ingress_id:
                self._cancel(stream)

    def _refresh_stats(self) -> None:
        """An idle engine reports nothing by itself, so ask it after a request ended: its KV blocks are free now."""
        self._beat_again = True
        if self._beat is None or self._beat.done():
            self._beat = asyncio.get_running_loop().create_task(self._ask())

    async def _ask(self) -> None:
        while self._beat_again:
            self._beat_again = False
            try:
                await self._engine.heartbeat()
            except EngineDeadError:
                return
            self._send_stats()
            # At most ten a second, however many requests end.
            await asyncio.sleep(0.1)

    async def _report(self) -> None:
        while True:
            self._send_stats()
            await asyncio.sleep(STATS_PERIOD_S)

    def _send_stats(self) -> None:
        now = asyncio.get_running_loop().time()
        for ingress_id, connection in self._connections.items():
            connection.send_stats(self._told(ingress_id), now, SIGN_OF_LIFE_S)
            connection.send_experts(self._engine.expert_load(), now)

    def _told(self, ingress_id: str) -> Stats:
        return Stats(self._engine.stats(), self._ladder.position, ingress_id == self._leader())

    def _leader(self) -> str | None:
        """The ingress whose orders count: of several that see the same pressure, one decides."""
        return min((name for name, connection in self._connections.items() if connection.open), default=None)

    def _obey(self, ingress_id: str, order: Order) -> None:
        if ingress_id != self._leader() or self._leaving:
            return
        task = asyncio.get_running_loop().create_task(self._carry_out(order))
        self._orders.add(task)
        task.add_done_callback(self._orders.discard)

    async def _carry_out(self, order: Order) -> None:
        try:
            await self._ladder.obey(order)
        except EngineDeadError as error:
            self._give_up(str(error))

    def _changed(self, change: PrecisionChange) -> None:
        """An order was carried out: those that lived through it, the ingress and the trace store are told."""
        self._tracer.changed(change)
        if change.kv_before != change.kv_after:
            for span in self._spans.values():
                span.lived_through(change)
        self._untold.append(change)
        self._tell_changes()

    def _tell_changes(self) -> None:
        leader = self._connections.get(self._leader() or "")
        while leader is not None and self._untold:
            leader.send(Changed(self._untold.popleft()))

    async def _watch(self) -> None:
        self._give_up(await EngineWatcher(self._engine, self._limits).watch())

    def _give_up(self, reason: str) -> None:
        """End this process. Ray sees the death at once, and so do the ingresses; Serve starts a replacement.

        A replica whose engine is gone has nothing left to save, and a clean way out could hang on the dead engine.
        """
        try:
            _log.error(
                "replica gives itself up: %s", Safe(reason), extra={"model": self._name, "replica": self._replica_id}
            )
            # First of all: this takes the replica out of routing, and lets its callers be served elsewhere.
            for connection in self._connections.values():
                connection.cut()
            self._kill_engine()
            self._before_exit()
        finally:
            # Whatever failed of it: a replica that lives on without its engine is worse.
            os._exit(EXIT_ENGINE_LOST)

    def _kill_engine(self) -> None:
        for pid in self._engine.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def _within_bounds(reply: EngineReply) -> EngineReply:
    """The reply, or a refusal of one that is too large; what it cost stays counted."""
    if len(reply.body) <= MAX_REPLY_BYTES:
        return reply
    text = (
        f"The answer has {len(reply.body)} bytes, more than the {MAX_REPLY_BYTES} that a whole one may have. "
        "Ask for fewer prompts, choices or logprobs at once, or stream it."
    )
    return replace(reply, status=400, body=ApiError(400, "answer_too_large", text).body())


def _internal_error(error: Exception) -> bytes:
    return ApiError(
        status=500, code="internal_error", message=f"The replica failed ({type(error).__name__}); see its log."
    ).body()
