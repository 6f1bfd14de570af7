"""Finds out within seconds that an engine is dead or hung, which Ray's own health checks take half a minute for.

Three signs count. A dead process: its kernel state. A hung one: it leaves a heartbeat unanswered and uses no processor
time meanwhile; an engine deep in a long prefill answers late too, but it computes. A stopped worker: the engine core spins
while it waits for one, so it is looked for among the processes below the core.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from deployments.engines.protocol import Engine, EngineDeadError
from deployments.processes import cpu_ticks, process_state, stopped_below

STALL_S = 60.0

DEAD_STATES = frozenset({"Z", "X", None})


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """When an engine counts as dead."""

    period_s: float = 0.25
    """Between two looks at the processes."""
    heartbeat_every_s: float = 1.0
    idle_silence_s: float = 2.0
    """A heartbeat unanswered this long by an engine that uses no processor time: hung."""
    stall_s: float = STALL_S
    """A heartbeat unanswered this long, whatever the engine does: hung."""

    @classmethod
    def of(cls, stall_timeout_s: float, waits_s: float = 0.0) -> WatchLimits:
        """Those of a config: what it sets for an idle engine is never longer than what a busy one is given.

        `waits_s`: seconds that the engine may wait for others without computing.
        """
        idle_s = stall_timeout_s + waits_s
        return cls(idle_silence_s=idle_s, stall_s=max(STALL_S, idle_s))


@dataclass(slots=True)
class _Silence:
    """Since when an engine has not answered. Times are seconds of the event loop's clock."""

    asked_at: float
    moved_at: float
    """When it was last seen to have computed."""
    looked_at: float
    """When a stopped process was last looked for."""
    ticks: tuple[int | None, ...]

    def forgive(self, seconds: float) -> None:
        """Leave out a span of time; nothing if it is not positive."""
        if seconds > 0:
            self.asked_at += seconds
            self.moved_at += seconds
            self.looked_at += seconds


class EngineWatcher:
    """Watches one engine; `watch` returns the reason for which it has to be replaced."""

    def __init__(
        self,
        engine: Engine,
        limits: WatchLimits,
        state_of: Callable[[int], str | None] = process_state,
        ticks_of: Callable[[int], int | None] = cpu_ticks,
        stopped_of: Callable[[tuple[int, ...]], int | None] = stopped_below,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._state_of = state_of
        self._ticks_of = ticks_of
        self._stopped_of = stopped_of
        self._sleep = sleep

    async def watch(self) -> str:
        """Runs as long as the engine lives. Returns why it does not any more, for people to read."""
        loop = asyncio.get_running_loop()
        beat: asyncio.Task[None] | None = None
        now = loop.time()
        silence = _Silence(now, now, now, self._ticks())
        try:
            while True:
                before = now
                await self._sleep(self._limits.period_s)
                now = loop.time()
                # More means that this process was stopped, or had no processor. An answer may be waiting to be read, so
                # that time says nothing about the engine.
                silence.forgive(now - before - 2 * self._limits.period_s)
                if (reason := self._dead_process()) is not None:
                    return reason
                if beat is not None and beat.done():
                    if (reason := _failure_of(beat)) is not None:
                        return reason
                    beat = None
                if beat is not None:
                    if (reason := await self._hung(silence, now)) is not None:
                        return reason
                elif now - silence.asked_at >= self._limits.heartbeat_every_s:
                    beat = loop.create_task(self._engine.heartbeat())
                    silence = _Silence(now, now, now, self._ticks())
        finally:
            if beat is not None:
                beat.cancel()

    async def _hung(self, silence: _Silence, now: float) -> str | None:
        """Why an engine that has not answered counts as hung; None as long as it does not."""
        limits = self._limits
        if (current := self._ticks()) != silence.ticks:
            silence.ticks, silence.moved_at = current, now
        if self._engine.pids() and now - silence.moved_at >= limits.idle_silence_s:
            return f"it has not answered or computed for {now - silence.moved_at:.1f} s (stopped or deadlocked)"
        if now - silence.looked_at >= limits.idle_silence_s:
            silence.looked_at = now
            if (stopped := await asyncio.to_thread(self._stopped_of, self._engine.pids())) is not None:
                return f"its process {stopped} is stopped; it has not answered for {now - silence.asked_at:.1f} s"
        if now - silence.asked_at >= limits.stall_s:
            return f"it has not answered for {now - silence.asked_at:.1f} s (stalled)"
        return None

    def _dead_process(self) -> str | None:
        for pid in self._engine.pids():
            if self._state_of(pid) in DEAD_STATES:
                return f"its process {pid} died"
        return None

    def _ticks(self) -> tuple[int | None, ...]:
        return tuple(self._ticks_of(pid) for pid in self._engine.pids())


def _failure_of(beat: asyncio.Task[None]) -> str | None:
    """Why an answered heartbeat means the end; None if it was a good one."""
    error = beat.exception()
    if error is None:
        return None
    return (
        str(error) if isinstance(error, EngineDeadError) else f"its heartbeat failed: {type(error).__name__}: {error}"
    )
