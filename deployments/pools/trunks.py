"""Who works by the pool map of a model, and by which version of it."""

from __future__ import annotations

import asyncio
from typing import Final

from cluster.experts.balancing import Report

FORGET_S: Final = 15.0
"""Seconds after which a trunk that asked for nothing is gone."""


class Trunks:
    """Of one model. Versions begin with the time of day, so that one that was started anew goes on above the one before it."""

    def __init__(self, wall_s: float) -> None:
        self.version = 0
        """Of the map in force; 0: there is none yet."""
        self._first = int(wall_s * 1000)
        self._signature: object = None
        self._serving: dict[str, tuple[Report, ...]] = {}
        self._changed = asyncio.Condition()
        self._known: dict[str, tuple[int, float]] = {}
        """By trunk the version that its engine works by, and when it said so."""
        self._waking: asyncio.Task[None] | None = None

    def asks(self, trunk: str, works_by: int, now_s: float) -> None:
        """The engine of a trunk works by a version."""
        self._known[trunk] = works_by, now_s

    def all_know(self, now_s: float) -> bool:
        """Whether the engine of every trunk that asked lately works by the map in force."""
        for trunk in [name for name, (_, at_s) in self._known.items() if now_s - at_s > FORGET_S]:
            del self._known[trunk]
        # Where nobody has asked yet, there may be trunks all the same.
        works_by = [version for version, _ in self._known.values()]
        return bool(self.version and works_by) and min(works_by) >= self.version

    def publish(self, signature: object, serving: dict[str, tuple[Report, ...]]) -> None:
        """Make a newer version, if the signature is another one."""
        if signature == self._signature:
            return
        self._signature, self._serving = signature, serving
        self.version = max(self.version + 1, self._first)
        self._waking = asyncio.get_running_loop().create_task(self._wake())

    async def newer(self, known: int, timeout_s: float) -> dict[str, tuple[Report, ...]] | None:
        """Replicas by pool once the version is above `known`; None: it was not within the time."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self.version > known)
        except TimeoutError:
            return None
        return self._serving

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()
