"""The waiting room in front of each model of one ingress."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from cluster.admission.asking import Asking, Waiting
from cluster.admission.decision import Held, Outcome, Room, Terms, decide, fits, retry_after_s
from cluster.admission.drain import Drain
from cluster.admission.line import Line
from cluster.api.errors import ApiError
from cluster.config.cluster import ClusterConfig
from deployments.channel.receiver import AttachedReplica, ChannelReceiver
from deployments.telemetry.metrics import IngressMetrics

LOOK_S: Final = 0.25
"""Seconds between two looks at a line: replicas come and go without anybody's request ending."""

ENDS: Final = 16
"""Ends, or one for each place if that is fewer, from which a request is refused for the time that it would wait."""


@dataclass(slots=True)
class _Model:
    """What is known of one model's requests."""

    held: Held = field(default_factory=Held)
    line: Line = field(default_factory=Line)
    calls: dict[int, asyncio.Future[None]] = field(default_factory=dict)
    """By number: who waits is told here that it is let in, or why not."""
    drain: Drain = field(default_factory=Drain)
    look: asyncio.TimerHandle | None = None
    """The next look at the line; None: nobody waits."""

    def take(self, asking: Asking) -> None:
        self.held = Held(self.held.requests + 1, self.held.tokens + asking.tokens)

    def give_back(self, asking: Asking) -> None:
        self.held = Held(self.held.requests - 1, self.held.tokens - asking.tokens)


class AdmissionControl:
    """Holds requests back until their model has room."""

    def __init__(self, config: ClusterConfig, channel: ChannelReceiver, metrics: IngressMetrics) -> None:
        self._config = config
        self._channel = channel
        self._metrics = metrics
        self._models: dict[str, _Model] = {}
        self._numbers = 0

    def follow(self, config: ClusterConfig) -> None:
        """The config changed; those that wait or are under way stay."""
        self._config = config
        self._models = {
            name: model
            for name, model in self._models.items()
            if name in config.models or model.held.requests or len(model.line)
        }

    def waiting(self, model: str) -> int:
        """Requests that wait for a model."""
        known = self._models.get(model)
        return 0 if known is None else len(known.line)

    def retry_after_s(self, model: str) -> int:
        """Seconds after which the line in front of a model will have drained."""
        known = self._models.get(model)
        now = asyncio.get_running_loop().time()
        return 1 if known is None else retry_after_s(len(known.line), known.drain.at_most_per_s(now))

    @asynccontextmanager
    async def enter(self, name: str, asking: Asking) -> AsyncIterator[None]:
        """Hold a place at a model. Waits for it, and raises `ApiError` 429 or 503 with Retry-After if it is of no use to wait."""
        model = self._models.setdefault(name, _Model())
        now = asyncio.get_running_loop().time()
        room = self._room(name)
        decision = decide(asking, room, model.held, model.line, self._terms(model, room, now))
        self._metrics.admission(name, decision.outcome.value, decision.code)
        if decision.outcome is Outcome.REJECTED:
            raise _refusal(name, decision.status, decision.code, decision.reason, decision.retry_after_s)
        if decision.displaces is not None:
            self._displace(name, model, decision.displaces, decision.retry_after_s)
        if decision.outcome is Outcome.QUEUED:
            with self._metrics.waiting(name):
                await self._wait(name, model, asking)
        else:
            model.take(asking)
        try:
            yield
        finally:
            model.give_back(asking)
            model.drain.ended(asyncio.get_running_loop().time())
            self._let_in(name, model)

    async def _wait(self, name: str, model: _Model, asking: Asking) -> None:
        loop = asyncio.get_running_loop()
        self._numbers += 1
        waiting, called = Waiting(asking, loop.time(), self._numbers), loop.create_future()
        model.line.join(waiting)
        model.calls[waiting.number] = called
        if model.look is None:
            model.drain.wait(True, loop.time())
            model.look = loop.call_later(LOOK_S, self._look, name, model)
        # It may be ahead of all others, and fit where they do not.
        self._let_in(name, model)
        try:
            await called
        except BaseException:
            if called.done() and not called.cancelled() and called.exception() is None:
                # Called in the very moment in which the caller left: the place goes to the next one.
                model.give_back(asking)
            raise
        finally:
            model.calls.pop(waiting.number, None)
            model.line.leave(waiting)
            self._let_in(name, model)

    def _look(self, name: str, model: _Model) -> None:
        """Look at the line of a model now and then, as long as somebody waits."""
        model.look = asyncio.get_running_loop().call_later(LOOK_S, self._look, name, model)
        self._let_in(name, model)

    def _let_in(self, name: str, model: _Model) -> None:
        """Let in whoever is next, as long as there is room."""
        now, aging_s = asyncio.get_running_loop().time(), self._config.admission.aging_s
        room = self._room(name) if len(model.line) else None
        while room is not None and (following := model.line.next(now, aging_s)) is not None:
            called = model.calls[following.number]
            if called.done():
                # It left, and was not yet told.
                model.line.leave(following)
                continue
            if room.places and not fits(following.asking, room, model.held):
                return
            model.line.serve(following)
            model.take(following.asking)
            called.set_result(None)
        if model.look is not None:
            model.look.cancel()
            model.look = None
            model.drain.wait(False, now)

    def _displace(self, name: str, model: _Model, one: Waiting, retry_s: int) -> None:
        """Refuse one that waits: a more urgent one takes its place."""
        model.line.leave(one)
        called = model.calls[one.number]
        if not called.done():
            self._metrics.admission(name, Outcome.DISPLACED.value, "saturated")
            called.set_exception(_refusal(name, 503, "saturated", "a more urgent request took its place", retry_s))

    def _terms(self, model: _Model, room: Room, now: float) -> Terms:
        admission, drain = self._config.admission, model.drain
        # Requests that began together end together: the first few ends tell little of the pace.
        known = drain.per_s(now, min(room.places, ENDS))
        return Terms(now, admission.aging_s, admission.tenant_share, known, drain.at_most_per_s(now))

    def _room(self, name: str) -> Room:
        config = self._config.models.get(name)
        if config is None:
            return Room(0, None, 0)
        replicas = self._channel.replicas(name)
        # Each ingress takes its part; at least one place, or nothing would ever go.
        part = self._config.ingress.replicas
        places = len(replicas) * config.replicas.max_ongoing_requests
        kv_tokens = _kv_tokens(replicas)
        return Room(
            places=max(1, places // part) if places else 0,
            kv_tokens=int(kv_tokens * self._config.admission.kv_overcommit / part) if kv_tokens else None,
            queue=config.replicas.max_queued_requests,
        )


def _refusal(model: str, status: int, code: str, reason: str, retry_s: int) -> ApiError:
    return ApiError(
        status,
        code,
        f"The model {model} is saturated: {reason}. Try again in {retry_s} s.",
        type="rate_limit_error" if status == 429 else "server_error",
        headers={"retry-after": str(retry_s)},
    )


def _kv_tokens(replicas: Iterable[AttachedReplica]) -> int:
    return sum(replica.stats.kv_blocks * replica.stats.kv_block_tokens for replica in replicas)
