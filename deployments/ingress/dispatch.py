"""Hands a request to a replica and brings its answer back."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Generator
from typing import Protocol

from ray.serve.handle import DeploymentHandle

from cluster.records.record import Precision
from cluster.routing.confidence import TokenConfidence
from deployments.channel.receiver import ChannelReceiver
from deployments.channel.sender import IngressAddress
from deployments.channel.stream import ReplicaLostError, TokenStream
from deployments.engines.protocol import EngineReply, EngineRequest, split_judged
from deployments.ingress.account import Call
from deployments.replica.spec import ReplicaCall
from deployments.router_state import STATE as ROUTER_STATE

_log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Replicas tried for one request, as long as the caller has not seen a byte."""

REPLY_GRACE_S = 2.0
"""The channel may be this much later than Serve with the news that a request ended."""


class Response(Protocol):
    """What is used of Serve's `DeploymentResponse`."""

    def __await__(self) -> Generator[object, None, object]: ...

    def cancel(self) -> None: ...


class NoReplicaError(RuntimeError):
    """No replica of the model can take the request now."""


class QueueFullError(RuntimeError):
    """The model's queue is full."""


class Answer:
    """One request in flight. `events` and `reply` are what the replica sends; `close` frees everything it holds."""

    def __init__(self, client: ModelClient, request: EngineRequest, max_buffered_bytes: int) -> None:
        self._client = client
        self._request = request
        self._max_bytes = max_buffered_bytes
        self._stream: TokenStream | None = None
        self._call: asyncio.Task[None] | None = None
        self._response: Response | None = None
        self._why: str | None = None
        self.attempts = 0
        self._early: TokenConfidence | None = None
        self.events = 0
        """Events handed out, about a token each."""
        self.call: Call | None = None
        """Where it is added up what this takes of engines; None: nowhere."""

    @property
    def reply(self) -> EngineReply | None:
        """How the request ended, once `next` has returned None."""
        return None if self._stream is None else self._stream.reply

    @property
    def early(self) -> TokenConfidence | None:
        """How sure the model is of the answer's beginning, as far as it was asked for and is known."""
        return self._early

    @property
    def replica_id(self) -> str | None:
        """The replica that took the request."""
        replica = None if self._stream is None else self._stream.replica
        return None if replica is None else replica.hello.replica_id

    @property
    def replica_reason(self) -> str | None:
        """Why it went to that replica."""
        if self._why is None and self._stream is not None:
            self._why = ROUTER_STATE.take_reason(self._stream.id)
        return self._why

    @property
    def engine(self) -> str | None:
        """The kind of engine that answers."""
        replica = None if self._stream is None else self._stream.replica
        return None if replica is None else replica.hello.engine

    @property
    def lists_experts(self) -> bool:
        """Whether the experts of its tokens were asked for."""
        return self._request.log_experts > 0

    @property
    def expert_blockers(self) -> tuple[str, ...]:
        """Why its engine does not tell of experts; empty: it does, or no replica took the request."""
        replica = None if self._stream is None else self._stream.replica
        return () if replica is None else replica.hello.expert_blockers

    def precision(self, by_config: Precision) -> Precision:
        """The number formats that the answer is computed in, as the replica told; `by_config` where it did not."""
        replica = None if self._stream is None else self._stream.replica
        if replica is None:
            return by_config
        reply = self.reply
        kv = replica.stats.kv_precision if reply is None else reply.kv.precision
        return Precision(replica.hello.weights or by_config.compute, kv or by_config.kv)

    async def next(self) -> bytes | None:
        """The events that have arrived, None at the end.

        A replica that dies before its first event is replaced by another one, up to `MAX_ATTEMPTS`. Raises
        `NoReplicaError`, `QueueFullError`, `SlowReaderError`, or `ReplicaLostError` once events were handed out.
        """
        while True:
            if self._stream is None:
                self._start()
            stream = self._stream
            if stream is None:
                raise NoReplicaError(self._client.model)
            try:
                data = await stream.next()
            except ReplicaLostError:
                self._drop()
                if self.events or self.attempts >= MAX_ATTEMPTS:
                    raise
                _log.warning("replica lost before its first event, trying another", extra={"attempt": self.attempts})
                await self._client.wait_for_replica()
                continue
            if data is None:
                self._count(stream)
                return None
            if self._request.judge_tokens is not None and self._early is None:
                data, self._early = split_judged(data)
                if not data:
                    continue
            self.events += data.count(b"\n\n")
            return data

    def _start(self) -> None:
        if not self._client.available():
            raise NoReplicaError(self._client.model)
        self.attempts += 1
        self._why = None
        stream = TokenStream(uuid.uuid4().hex, self._max_bytes)
        self._stream = stream
        self._client.channel.open_stream(stream, self._client.model)
        self._response = self._client.call(ReplicaCall(stream.id, self._client.address, self._request))
        self._call = asyncio.get_running_loop().create_task(self._follow(stream, self._response))

    async def _follow(self, stream: TokenStream, response: Response) -> None:
        """Serve's side of the request: turns its failures into failures of the stream."""
        try:
            await response
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - Serve raises what the replica raised, of any type
            stream.fail(self._client.translate(error, stream))
            return
        if not stream.ended:
            await asyncio.sleep(REPLY_GRACE_S)
            stream.fail(ReplicaLostError("that ended without an answer"))

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        call, self._call = self._call, None
        response, self._response = self._response, None
        if stream is not None:
            self._count(stream)
            self._client.channel.close_stream(stream)
            if stream.reply is None and response is not None:
                response.cancel()
        if call is not None:
            call.cancel()

    def close(self) -> None:
        """Tell the replica to stop, if it still works. Must be called for every answer, whatever happened."""
        stream = self._stream
        if stream is None:
            return
        self._count(stream)
        self._client.channel.close_stream(stream)
        if stream.reply is None:
            if self._response is not None:
                self._response.cancel()
            if self._call is not None:
                self._call.cancel()

    def _count(self, stream: TokenStream) -> None:
        if self.call is not None:
            self.call.count(stream, self.attempts, self.events)


class ModelClient:
    """All replicas of one model, as seen from one ingress."""

    def __init__(
        self,
        model: str,
        handle: DeploymentHandle[object],
        channel: ChannelReceiver,
        address: IngressAddress,
        application: str,
    ) -> None:
        self.model = model
        self.channel = channel
        self.address = address
        self.application = application
        """Serve application that its replicas belong to."""
        self._handle = handle
        self._turned = False
        self._inviting: asyncio.Task[None] | None = None
        self._waking: asyncio.Task[None] | None = None

    def turn_to(self, other: ModelClient) -> None:
        """Send to another application from now on: the model's replicas were replaced."""
        self._handle, self.application, self._turned = other._handle, other.application, True

    def attached(self) -> bool:
        """Whether every replica that Serve lists has attached, and there is one."""
        known = ROUTER_STATE.replicas(self.application)
        return bool(known) and all(self.channel.is_attached(replica) for replica in known or ())

    def available(self) -> bool:
        """Whether some replica can take a request now."""
        return bool(self.channel.replicas(self.model))

    def call(self, call: ReplicaCall) -> Response:
        """Route a call through Serve: its queue, its limits, its retries for replicas that refuse."""
        response: Response = self._handle.serve.remote(call)
        return response

    def answer(self, request: EngineRequest, max_buffered_bytes: int) -> Answer:
        """Start nothing yet: the first `next` does."""
        return Answer(self, request, max_buffered_bytes)

    async def wait_for_replica(self, timeout_s: float = 1.0) -> None:
        """Give a replacement a moment to show up. Returns at once while another replica is there."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not self.available() and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)

    def translate(self, error: Exception, stream: TokenStream) -> Exception:
        """Serve's and Ray's exceptions in our own terms."""
        from ray.exceptions import RayActorError, RayError, TaskCancelledError
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError

        if isinstance(error, BackPressureError):
            return QueueFullError(self.model)
        if isinstance(error, DeploymentUnavailableError):
            # A request that waited for a replica while all were replaced finds others now.
            return ReplicaLostError("that was replaced") if self._turned else NoReplicaError(self.model)
        if isinstance(error, RayActorError | RequestCancelledError | TaskCancelledError | RayError):
            replica = stream.replica.hello.replica_id if stream.replica is not None else "that was chosen"
            return ReplicaLostError(replica)
        return error

    def invite(self) -> None:
        """Ask every replica that Serve knows to attach; idempotent, and at most one round at a time."""
        if self._inviting is None or self._inviting.done():
            self._inviting = asyncio.get_running_loop().create_task(self._invite())

    def wake(self, limit_s: float) -> None:
        """Have Serve start a replica if there is none: a call waits for it, for as long as a start may take."""
        if self._waking is None or self._waking.done():
            self._waking = asyncio.get_running_loop().create_task(self._wake(limit_s))

    async def _wake(self, limit_s: float) -> None:
        response = self._handle.attach.remote(self.address)
        try:
            async with asyncio.timeout(limit_s):
                await response
        except Exception as error:  # noqa: BLE001 - the next request wakes it again, whatever it was
            response.cancel()
            _log.warning("a parked model was not started: %s", type(error).__name__, extra={"model": self.model})

    async def _invite(self) -> None:
        try:
            response = self._handle.broadcast("attach", self.address)
            await response.results_async(timeout_s=5.0)
        except Exception as error:  # noqa: BLE001 - the next round asks again, whatever it was
            # A replica that does not answer is not attached, so nothing is routed to it; the next round asks again.
            _log.info("inviting the replicas of a model failed: %s", type(error).__name__, extra={"model": self.model})
