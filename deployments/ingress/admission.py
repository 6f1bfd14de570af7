"""The waiting room in front of each model of one ingress."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from cluster.admission import Asking, Held, Outcome, Room, Waiting, decide, fits, next_in_line
from cluster.api.errors import ApiError
from cluster.config.cluster import ClusterConfig
from deployments.channel.receiver import AttachedReplica, ChannelReceiver
from deployments.telemetry.metrics import IngressMetrics

LOOK_S: Final = 0.25
"""Seconds between two looks of those that wait: replicas come and go without anybody's request ending."""

DRAIN_WINDOW_S: Final = 30.0
_DRAIN_ENDS: Final = 512


@dataclass(slots=True)
class _Line:
    """One model's queue."""

    held: Held = field(default_factory=Held)
    waiting: dict[int, Waiting] = field(default_factory=dict)
    calls: dict[int, asyncio.Future[None]] = field(default_factory=dict)
    served: dict[str, float] = field(default_factory=dict)
    """Tokens by tenant, since the queue was last empty."""
    ends: deque[float] = field(default_factory=lambda: deque(maxlen=_DRAIN_ENDS))
    """When requests ended, on the loop's clock."""

    def drain_per_s(self, now: float) -> float | None:
        """Requests that ended a second of late; None: too few to say."""
        while self.ends and now - self.ends[0] > DRAIN_WINDOW_S:
            self.ends.popleft()
        if len(self.ends) < 2:
            return None
        return len(self.ends) / max(now - self.ends[0], 0.001)


class AdmissionControl:
    """Holds requests back until their model has room."""

    def __init__(self, config: ClusterConfig, channel: ChannelReceiver, metrics: IngressMetrics) -> None:
        self._config = config
        self._channel = channel
        self._metrics = metrics
        self._lines: dict[str, _Line] = {}
        self._numbers = 0

    def follow(self, config: ClusterConfig) -> None:
        """The config changed; those that wait or are under way stay."""
        self._config = config
        self._lines = {name: line for name, line in self._lines.items() if name in config.models or line.held.requests}

    @asynccontextmanager
    async def enter(self, model: str, asking: Asking) -> AsyncIterator[None]:
        """Hold a place at the model. Waits for it, and raises `ApiError` 429 or 503 with Retry-After if it is of no use to wait."""
        line = self._lines.setdefault(model, _Line())
        loop = asyncio.get_running_loop()
        room = self._room(model)
        waiting = list(line.waiting.values())
        share = self._config.admission.tenant_share
        decision = decide(asking, room, line.held, waiting, line.drain_per_s(loop.time()), share)
        self._metrics.admission(model, decision.outcome.value, decision.code)
        if decision.outcome is Outcome.REJECTED:
            headers = {"retry-after": str(decision.retry_after_s)}
            kind = "rate_limit_error" if decision.status == 429 else "server_error"
            message = f"The model {model} is saturated: {decision.reason}. Try again in {decision.retry_after_s} s."
            raise ApiError(decision.status, decision.code, message, type=kind, headers=headers)
        if decision.outcome is Outcome.QUEUED:
            with self._metrics.waiting(model):
                await self._wait(model, line, asking)
        else:
            self._take(line, asking)
        try:
            yield
        finally:
            line.held = Held(line.held.requests - 1, line.held.tokens - asking.tokens)
            line.ends.append(loop.time())
            self._call(model, line)

    async def _wait(self, model: str, line: _Line, asking: Asking) -> None:
        loop = asyncio.get_running_loop()
        self._numbers += 1
        number, called = self._numbers, loop.create_future()
        line.waiting[number] = Waiting(asking, loop.time(), number)
        line.calls[number] = called
        try:
            while not called.done():
                await asyncio.wait({called}, timeout=LOOK_S)
                self._call(model, line)
        except BaseException:
            if called.done():
                # Called in the very moment in which the caller left: the place goes to the next one.
                line.held = Held(line.held.requests - 1, line.held.tokens - asking.tokens)
            raise
        finally:
            line.waiting.pop(number, None)
            line.calls.pop(number, None)
            if not line.waiting:
                line.served.clear()
            self._call(model, line)

    def _call(self, model: str, line: _Line) -> None:
        """Let in whoever is next, as long as there is room."""
        if not line.waiting:
            return
        room, now = self._room(model), asyncio.get_running_loop().time()
        while line.waiting:
            following = next_in_line(list(line.waiting.values()), line.served, now, self._config.admission.aging_s)
            if following is None or (room.places and not fits(following.asking, room, line.held)):
                return
            del line.waiting[following.number]
            self._take(line, following.asking)
            line.calls[following.number].set_result(None)

    def _take(self, line: _Line, asking: Asking) -> None:
        line.held = Held(line.held.requests + 1, line.held.tokens + asking.tokens)
        if line.waiting:
            # Tenants that come new begin where the least served is, not with all the time that they were away.
            least = min(line.served.values(), default=0.0)
            line.served[asking.tenant] = line.served.get(asking.tenant, least) + asking.tokens

    def _room(self, model: str) -> Room:
        config = self._config.models.get(model)
        if config is None:
            return Room(0, None, 0)
        replicas = self._channel.replicas(model)
        # Each ingress takes its part; at least one place, or nothing would ever go.
        part = self._config.ingress.replicas
        places = len(replicas) * config.replicas.max_ongoing_requests
        kv_tokens = _kv_tokens(replicas)
        return Room(
            places=max(1, places // part) if places else 0,
            kv_tokens=int(kv_tokens * self._config.admission.kv_overcommit / part) if kv_tokens else None,
            queue=config.replicas.max_queued_requests,
        )


def _kv_tokens(replicas: Iterable[AttachedReplica]) -> int:
    return sum(replica.stats.kv_blocks * replica.stats.kv_block_tokens for replica in replicas)
