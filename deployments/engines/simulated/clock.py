"""The two clocks that a simulated engine can run on."""

from __future__ import annotations

import asyncio
import heapq
import time
from typing import Final, Protocol

_SETTLE_TURNS: Final = 16
"""Turns of the event loop given to everything that can still run before virtual time moves on."""


class Clock(Protocol):
    """What the engine needs of time."""

    def now(self) -> float:
        """Seconds from an arbitrary start; never goes back."""

    def wall(self) -> int:
        """Unix time in whole seconds, for the `created` field of responses."""

    async def sleep_until(self, when: float) -> None:
        """Return once `now()` has reached `when`; at once, but after other tasks had a turn, if it has already."""


class RealClock:
    """The event loop's clock: a simulated second takes a second."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> int:
        return int(time.time())

    async def sleep_until(self, when: float) -> None:
        await asyncio.sleep(max(0.0, when - self.now()))


class VirtualClock:
    """Time that moves only when everything waits: hours of simulated load in seconds, repeatable to the event.

    Share one between the engines and the load of a simulation. It holds for tasks of one event loop that wait for each
    other or for this clock; what waits for a socket or a real timer would see time jump past it.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._order = 0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._mover: asyncio.Task[None] | None = None

    def now(self) -> float:
        return self._now

    def wall(self) -> int:
        return int(self._now)

    async def sleep(self, seconds: float) -> None:
        """Sleep for a span of virtual seconds."""
        await self.sleep_until(self._now + seconds)

    async def sleep_until(self, when: float) -> None:
        if when <= self._now:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._order += 1
        heapq.heappush(self._sleepers, (when, self._order, woken))
        if self._mover is None or self._mover.done():
            self._mover = asyncio.create_task(self._move(), name="virtual-clock")
        await woken

    async def _move(self) -> None:
        """Wake sleepers in order of time, each after the tasks that the one before it set off have come to rest."""
        while self._sleepers:
            for _ in range(_SETTLE_TURNS):
                await asyncio.sleep(0)
            if not self._sleepers:
                return
            when, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                self._now = max(self._now, when)
                woken.set_result(None)
