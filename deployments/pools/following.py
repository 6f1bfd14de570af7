"""A trunk's way to its pools: keeps the map that its engine works by up to date, and has parked pools woken."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Protocol, TypeVar

from cluster.experts.pools import PoolMapError, parse_pool_map
from deployments.engines.protocol import EngineDeadError, EngineStartError
from deployments.experts.trunk_files import TrunkFiles
from deployments.telemetry.log_safety import Safe

_log = logging.getLogger(__name__)
_Told = TypeVar("_Told")

LOOK_S: Final = 0.2
"""Seconds between two looks for parked pools that tokens wait for."""
RETRY_S: Final = 0.5
CALL_S: Final = 20.0
"""Seconds that one question may take: a deployment that is being replaced answers late."""


class Pools(Protocol):
    """The deployment that knows the pools, as this trunk sees it."""

    async def map(self, known: int, works_by: int) -> str | None:
        """The pool map as JSON once it is newer than `known`; None: not for a while. The engine works by `works_by`."""

    async def invoked(self, pool: str) -> None:
        """Tokens wait for a parked pool."""


class PoolFollower:
    """Of one trunk. `close` removes its files."""

    def __init__(self, pools: Pools, files: TrunkFiles) -> None:
        self._pools = pools
        self._files = files
        self._version = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, limit_s: float) -> None:
        """Returns once the engine can be started. Raises `EngineStartError` if no pools were there within the time."""
        self._files.wanted.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            async with asyncio.timeout(limit_s):
                while not self._version:
                    await self._once()
        except TimeoutError:
            raise EngineStartError(
                f"the pools of the model's experts were not there within {limit_s:g} s; "
                "`pointsman status` and the logs of the pools say why"
            ) from None
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._follow()), loop.create_task(self._wake())]

    async def close(self) -> None:
        """End it. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._files.map.unlink(missing_ok=True)
        self._files.taken.unlink(missing_ok=True)
        shutil.rmtree(self._files.wanted, ignore_errors=True)

    async def _follow(self) -> None:
        while True:
            await self._once()

    async def _once(self) -> None:
        """Ask once; whoever is asked holds the question until there is something new."""
        told = await self._asked(lambda: self._pools.map(self._version, self._works_by()), "where the pools are")
        if told is None:
            return
        try:
            version = parse_pool_map(told).version
            fresh = self._files.map.with_suffix(".new")
            fresh.write_text(told, encoding="utf-8")
            fresh.replace(self._files.map)
            self._version = version
        except (PoolMapError, OSError) as error:
            _log.error("a pool map is not taken on: %s", Safe(str(error)))
            await asyncio.sleep(RETRY_S)

    def check(self) -> None:
        """Raises `EngineDeadError` once nobody follows any more."""
        if any(task.done() for task in self._tasks):
            raise EngineDeadError("nobody follows where the pools of the model's experts are")

    def _works_by(self) -> int:
        """The version that the engine works by, as it left word; 0: it has not."""
        try:
            return int(self._files.taken.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    async def _wake(self) -> None:
        while True:
            for pool in self._wanted():
                await self._asked(lambda pool=pool: self._pools.invoked(pool), "for a parked pool")  # type: ignore[misc]
            await asyncio.sleep(LOOK_S)

    def _wanted(self) -> list[str]:
        """Pools that tokens wait for. The engine says so again for as long as they do."""
        try:
            found = list(self._files.wanted.iterdir())
        except OSError:
            return []
        for file in found:
            with suppress(OSError):
                file.unlink()
        return [file.name for file in found]

    async def _asked(self, question: Callable[[], Awaitable[_Told]], what: str) -> _Told | None:
        try:
            async with asyncio.timeout(CALL_S):
                return await question()
        except Exception as error:  # noqa: BLE001 - the engine goes on with the map that it has
            _log.warning("asking %s failed: %s", Safe(what), type(error).__name__)
            await asyncio.sleep(RETRY_S)
            return None
