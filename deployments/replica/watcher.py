"""Finds out within seconds that an engine is dead or hung, which Ray's own health checks take half a minute for.

Two signs count. A dead process: its kernel state. A hung one: it leaves a heartbeat unanswered and uses no processor
time meanwhile; an engine deep in a long prefill answers late too, but it computes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from deployments.engines.protocol import Engine, EngineDeadError
from deployments.processes import cpu_ticks, process_state

DEAD_STATES = frozenset({"Z", "X", None})


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """When an engine counts as dead."""

    period_s: float = 0.25
    """Between two looks at the processes."""
    heartbeat_every_s: float = 1.0
    idle_silence_s: float = 2.0
    """A heartbeat unanswered this long by an engine that uses no processor time: hung."""
    stall_s: float = 60.0
    """A heartbeat unanswered this long, whatever the engine does: hung."""


class EngineWatcher:
    """Watches one engine; `watch` returns the reason for which it has to be replaced."""

    def __init__(
        self,
        engine: Engine,
        limits: WatchLimits,
        state_of: Callable[[int], str | None] = process_state,
        ticks_of: Callable[[int], int | None] = cpu_ticks,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._state_of = state_of
        self._ticks_of = ticks_of
        self._sleep = sleep

    async def watch(self) -> str:
        """Runs as long as the engine lives. Returns why it does not any more, for people to read."""
        loop = asyncio.get_running_loop()
        beat: asyncio.Task[None] | None = None
        asked_at = moved_at = loop.time()
        ticks = self._ticks()
        try:
            while True:
                await self._sleep(self._limits.period_s)
                now = loop.time()
                if (reason := self._dead_process()) is not None:
                    return reason
                if beat is not None and beat.done():
                    if isinstance(error := beat.exception(), EngineDeadError):
                        return str(error)
                    if error is not None:
                        return f"its heartbeat failed: {type(error).__name__}: {error}"
                    beat = None
                if beat is None:
                    if now - asked_at >= self._limits.heartbeat_every_s:
                        beat = loop.create_task(self._engine.heartbeat())
                        asked_at = moved_at = now
                        ticks = self._ticks()
                    continue
                if (current := self._ticks()) != ticks:
                    ticks, moved_at = current, now
                if self._engine.pids() and now - moved_at >= self._limits.idle_silence_s:
                    return f"it has not answered or computed for {now - moved_at:.1f} s (stopped or deadlocked)"
                if now - asked_at >= self._limits.stall_s:
                    return f"it has not answered for {now - asked_at:.1f} s (stalled)"
        finally:
            if beat is not None:
                beat.cancel()

    def _dead_process(self) -> str | None:
        for pid in self._engine.pids():
            if self._state_of(pid) in DEAD_STATES:
                return f"its process {pid} died"
        return None

    def _ticks(self) -> tuple[int | None, ...]:
        return tuple(self._ticks_of(pid) for pid in self._engine.pids())
