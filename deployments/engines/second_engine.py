"""For engines that cannot change their KV precision while they run: a second engine beside the first, which then drains.

Nothing stands still and nothing is computed again, but both engines hold their memory until the first has finished.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from cluster.experts.load import ExpertLoad
from cluster.precision.measures import OWN
from deployments.engines.kv_precision import KvPrecisionError, KvSwitch
from deployments.engines.protocol import Emit, Engine, EngineReply, EngineRequest, EngineStartError, EngineStats
from deployments.engines.vllm_kv_core import LOWER

_log = logging.getLogger(__name__)

_TOTALS: Final = (
    "kv_switches",
    "kv_evictions",
    "kv_lifetime_s",
    "preemptions",
    "forced_preemptions",
    "recomputed_tokens",
    "prefix_queries",
    "prefix_hits",
    "prompt_tokens",
    "generated_tokens",
)
"""Fields of the statistics that only ever grow: those of engines that have left stay counted."""


@dataclass(slots=True, eq=False)
class _Held:
    """One engine and the requests that it works on."""

    engine: Engine
    requests: int = 0


class SecondEngine:
    """An engine that is replaced by another one of the same kind when its KV precision is to change.

    `make` makes one with the KV precision that it is given. One that can change while it runs does so, and is never replaced.
    """

    def __init__(self, make: Callable[[str], Engine]) -> None:
        self._make = make
        self._current = _Held(make(OWN))
        self._leaving: _Held | None = None
        self._starting: Engine | None = None
        self._closed = False
        self._precision = OWN
        self._gone = EngineStats()
        self._replaced = 0
        self._changing = asyncio.Lock()
        self._drain: asyncio.Task[None] | None = None
        self.kind = self._current.engine.kind

    @property
    def weights(self) -> str:
        """Number format of the weights; see `Engine.weights`."""
        return self._current.engine.weights

    @property
    def sampling_defaults(self) -> tuple[float, float]:
        """See `Engine.sampling_defaults`."""
        return self._current.engine.sampling_defaults

    @property
    def kv_precisions(self) -> tuple[str, ...]:
        """What the KV precision can change to; see `Engine.kv_precisions`."""
        return self._current.engine.kv_precisions or (OWN, *LOWER)

    @property
    def kv_blockers(self) -> tuple[str, ...]:
        """Nothing stands in the way: what does so in the engine is what the second one is for."""
        return ()

    @property
    def expert_blockers(self) -> tuple[str, ...]:
        """See `Engine.expert_blockers`."""
        return self._current.engine.expert_blockers

    def expert_load(self) -> ExpertLoad | None:
        """That of the serving engine; see `Engine.expert_load`."""
        return self._current.engine.expert_load()

    async def start(self) -> None:
        """Start the first engine; see `Engine.start`."""
        await self._current.engine.start()

    async def run(self, request: EngineRequest, emit: Emit) -> EngineReply:
        """Serve one request, to its end on the engine of its beginning; see `Engine.run`."""
        held = self._current
        held.requests += 1
        try:
            return await held.engine.run(request, emit)
        finally:
            held.requests -= 1

    async def set_kv_precision(self, precision: str) -> KvSwitch:
        """Start a second engine, have it take all that comes from now on, and let the first one finish.

        Raises `KvPrecisionError`: the second engine does not start, or the one before the first has not finished.
        """
        async with self._changing:
            first = self._current
            if first.engine.kv_precisions:
                return await first.engine.set_kv_precision(precision)
            if precision not in self.kv_precisions:
                raise KvPrecisionError(f"the KV precision cannot change to {precision}")
            before = first.engine.stats()
            if precision == self._precision:
                blocks = before.kv_blocks
                return KvSwitch(before.kv_precision, before.kv_precision, 0.0, 0, 0, blocks, blocks)
            await self._wait_for_room()
            second = _Held(await self._started(precision))
            self._current, self._leaving, self._precision = second, first, precision
            self._replaced += 1
            self._drain = asyncio.create_task(self._let_finish(first), name="engine-drain")
            after = second.engine.stats()
            return KvSwitch(before.kv_precision, after.kv_precision, 0.0, 0, 0, before.kv_blocks, after.kv_blocks)

    async def _wait_for_room(self) -> None:
        """Three engines at once are never held. Raises `KvPrecisionError` if the one before still works."""
        leaving, drain = self._leaving, self._drain
        if leaving is None or drain is None:
            return
        if leaving.requests:
            raise KvPrecisionError(
                f"the KV precision was not changed: the engine before still works on {leaving.requests} requests"
            )
        await asyncio.shield(drain)

    async def _started(self, precision: str) -> Engine:
        """A second engine that runs. Raises `KvPrecisionError`; then it holds nothing any more."""
        engine = self._starting = self._make(precision)
        try:
            await engine.start()
            if self._closed:
                raise KvPrecisionError("the KV precision was not changed: the replica is being stopped")
        except EngineStartError as error:
            await engine.close()
            raise KvPrecisionError(f"the KV precision was not changed, no second engine starts: {error}") from error
        except BaseException:
            await engine.close()
            raise
        finally:
            self._starting = None
        return engine

    async def _let_finish(self, held: _Held) -> None:
        while held.requests:
            await asyncio.sleep(0.05)
        self._gone = _added(self._gone, held.engine.stats())
        self._leaving = None
        await held.engine.close()
        _log.info("the engine with the KV precision before has finished and is gone")

    def stats(self) -> EngineStats:
        """The serving engine's own numbers, with the totals of all."""
        stats = _added(self._current.engine.stats(), self._gone)
        if self._leaving is not None:
            leaving = self._leaving.engine.stats()
            stats = _added(stats, leaving)
            stats = replace(stats, running=stats.running + leaving.running, waiting=stats.waiting + leaving.waiting)
        return replace(stats, kv_switches=stats.kv_switches + self._replaced)

    async def heartbeat(self) -> None:
        """Both engines answer; see `Engine.heartbeat`."""
        await self._current.engine.heartbeat()
        leaving = self._leaving
        if leaving is None:
            return
        answer = asyncio.ensure_future(leaving.engine.heartbeat())
        try:
            while not answer.done() and leaving is self._leaving:
                await asyncio.wait({answer}, timeout=0.05)
            # One that has gone meanwhile owes no answer.
            if leaving is self._leaving:
                answer.result()
        finally:
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)

    def pids(self) -> tuple[int, ...]:
        """Processes of all its engines that run."""
        leaving = () if self._leaving is None else self._leaving.engine.pids()
        return (*self._current.engine.pids(), *leaving)

    async def close(self) -> None:
        """Free everything, also what is only starting. Idempotent."""
        self._closed = True
        if self._starting is not None:
            await self._starting.close()
        if self._drain is not None:
            self._drain.cancel()
            await asyncio.gather(self._drain, return_exceptions=True)
        for held in (self._current, self._leaving):
            if held is not None:
                await held.engine.close()


def _added(stats: EngineStats, other: EngineStats) -> EngineStats:
    """`stats` with the totals of another engine added."""
    totals = {name: getattr(stats, name) + getattr(other, name) for name in _TOTALS}
    fastest = max(stats.prefill_tokens_per_s, other.prefill_tokens_per_s)
    return replace(stats, **totals, prefill_tokens_per_s=fastest)
