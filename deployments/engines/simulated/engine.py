"""The engine protocol over the simulated scheduler: passes time, hands out tokens, writes OpenAI responses."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any, Final

from cluster.api.errors import ApiError
from cluster.api.prompt_size import prompt_too_long
from cluster.config.engine import EngineConfig, SimulatedConfig
from cluster.experts.load import ExpertLoad
from cluster.precision.measures import OWN
from deployments.engines.expert_routing import NO_EXPERTS
from deployments.engines.kv_precision import KvPrecisionError, KvSwitch
from deployments.engines.protocol import (
    Emit,
    EngineDeadError,
    EngineReply,
    EngineRequest,
    EngineStartError,
    EngineStats,
)
from deployments.engines.simulated.active import Active
from deployments.engines.simulated.clock import Clock, RealClock, VirtualClock
from deployments.engines.simulated.core import Bounds, Costs, Scheduler, Step
from deployments.engines.simulated.experts import Experts
from deployments.engines.simulated.pretence import Pretence
from deployments.engines.simulated.requests import read_work
from deployments.engines.simulated.responses import Writer, shown_name
from deployments.engines.simulated.trunk import SimulatedTrunk
from deployments.experts.trunk_files import TrunkFiles

_log = logging.getLogger(__name__)

MAX_SEQUENCES: Final = 20_000
"""Sequences that the engine holds, waiting ones included; past that it answers 503, so that its memory is bounded."""

_DEFAULT_BATCHED_TOKENS: Final = 2048

_PRECISIONS: Final = {OWN: ("simulated16", 1), "fp8": ("fp8", 2)}
"""What the KV precision can change to: the number format that it pretends to, and the blocks that the same memory holds."""


class SimulatedEngine:
    """One simulated engine. The same seed and the same requests at the same times give the same answers and times.

    As a `trunk` it has pools compute made-up experts, in real time; its answers are the same.
    """

    kind = "simulated"
    weights = "simulated"
    sampling_defaults: tuple[float, float] = (1.0, 1.0)
    kv_precisions: tuple[str, ...] = tuple(_PRECISIONS)
    kv_blockers: tuple[str, ...] = ()
    expert_blockers: tuple[str, ...] = (NO_EXPERTS,)

    def __init__(
        self, name: str, config: EngineConfig, clock: Clock | None = None, trunk: TrunkFiles | None = None
    ) -> None:
        settings = config.simulated or SimulatedConfig()
        self._name = name
        self._seed = settings.seed
        self._confidence = settings.confidence
        self._clock: Clock = clock or (VirtualClock() if settings.clock == "virtual" else RealClock())
        bounds = Bounds(
            kv_blocks=settings.kv_blocks,
            kv_block_tokens=settings.kv_block_tokens,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens or _DEFAULT_BATCHED_TOKENS,
            prefix_caching=config.prefix_caching,
        )
        self._bounds = bounds
        pool = bounds.kv_blocks * bounds.kv_block_tokens
        self._max_model_len = min(config.max_model_len or pool, config.kv_window_tokens or pool, pool)
        costs = Costs(settings.prefill_tokens_per_s, settings.decode_step_base_s, settings.decode_step_per_seq_s)
        self._costs = costs
        self._scheduler = Scheduler(bounds, costs)
        self._active: dict[str, Active] = {}
        self._work_came = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._serial = 0
        self._kv_precision: str = OWN if config.kv_cache_dtype == OWN else "fp8"
        self._switches = 0
        self._experts: Experts | None = None
        if settings.experts is not None:
            self._experts, self.expert_blockers = Experts(settings.experts, settings.seed), ()
        self._trunk_files = trunk
        self._trunk: SimulatedTrunk | None = None
        if trunk is not None and settings.experts is not None:
            self._trunk = SimulatedTrunk(name, settings.experts, settings.seed, trunk, MAX_SEQUENCES)
        self._why_dead = f"the simulated engine of model {name!r} is not running"
        if self._kv_precision != OWN:
            self.kv_precisions, self.kv_blockers = (), ("a KV precision that is set to fp8",)

    async def start(self) -> None:
        """Begin to pass time. There is no model to load, but a trunk connects to its pools; see `Engine.start`."""
        if self._trunk_files is not None and self._loop is None:
            await self._open_trunk()
        if self._loop is None:
            self._loop = asyncio.create_task(self._run(), name=f"simulated-{self._name}")

    async def run(self, request: EngineRequest, emit: Emit) -> EngineReply:
        """Serve one request; see `Engine.run`."""
        self._check_alive()
        try:
            work = read_work(request.endpoint, request.body, self._seed, self._max_model_len)
            self._check_room(len(work.prompts) * work.choices)
            longest, limit = max(map(len, work.prompts)), request.max_prompt_tokens
            if limit is not None and longest > limit:
                raise prompt_too_long(longest, limit)
        except ApiError as error:
            return EngineReply(status=error.status, body=error.body())
        self._serial += 1
        writer = Writer(request.endpoint, request.request_id, shown_name(self._name), self._clock.wall())
        # The serial keeps two requests apart that were given the same id.
        key = f"{self._serial}:{request.request_id}"
        pretence = Pretence(self._confidence, request.judge_tokens) if request.judge else None
        active = Active(key, work, writer, emit if work.stream else None, request.tenant, pretence)
        used = None if self._experts is None else self._experts.begin(active.sequences, request)
        if self._trunk is not None and used is not None:
            self._trunk.follow(key, active.sequences, used.router)
        for sequence in active.sequences:
            self._active[sequence.key] = active
            self._scheduler.add(sequence)
        self._work_came.set()
        try:
            await active.ended
        finally:
            for sequence in active.sequences:
                self._active.pop(sequence.key, None)
                self._scheduler.cancel(sequence.key)
            experts = None if used is None else used.end()
            pools = None if self._trunk is None else self._trunk.end(key, active.sequences)
        reply = replace(
            active.reply(),
            experts=experts,
            kv=active.kv_use(_PRECISIONS[self._kv_precision][0]),
            pools=pools,
        )
        return reply if pretence is None else replace(reply, confidence=pretence.result())

    async def set_kv_precision(self, precision: str) -> KvSwitch:
        """Pretend to another KV precision: the pool has more blocks or fewer; see `Engine.set_kv_precision`."""
        self._check_alive()
        if precision not in self.kv_precisions:
            why = "; ".join(self.kv_blockers) or f"it can be {' or '.join(self.kv_precisions)}"
            raise KvPrecisionError(f"the KV precision cannot change to {precision}: {why}")
        before, blocks = _PRECISIONS[self._kv_precision][0], self._scheduler.pool.total
        after, times = _PRECISIONS[precision]
        if before == after:
            return KvSwitch(before, after, 0.0, 0, 0, blocks, blocks)
        preempted, tokens = self._scheduler.rebuild(self._bounds.kv_blocks * times)
        self._kv_precision = precision
        self._switches += 1
        return KvSwitch(before, after, 0.0, preempted, tokens, blocks, self._scheduler.pool.total)

    def expert_load(self) -> ExpertLoad | None:
        """Of routes that are made up, up to now; see `Engine.expert_load`."""
        return None if self._experts is None else self._experts.load()

    async def pools_report(self) -> dict[str, Any] | None:
        """What the trunk and its pools did, as of now; see `PoolClient.report`. None: it is no trunk."""
        self._check_alive()
        return None if self._trunk is None else await self._trunk.report()

    def stats(self) -> EngineStats:
        """A snapshot; never blocks."""
        pool, counters = self._scheduler.pool, self._scheduler.counters
        return EngineStats(
            running=self._scheduler.running,
            waiting=self._scheduler.waiting,
            kv_usage=pool.in_use / pool.total,
            kv_blocks=pool.total,
            kv_block_tokens=self._bounds.kv_block_tokens,
            kv_precision=_PRECISIONS[self._kv_precision][0],
            kv_switches=self._switches,
            preemptions=counters.preemptions,
            forced_preemptions=counters.forced_preemptions,
            recomputed_tokens=counters.recomputed_tokens,
            prefix_queries=counters.prefix_queries,
            prefix_hits=counters.prefix_hits,
            prompt_tokens=counters.prompt_tokens,
            generated_tokens=counters.generated_tokens,
            prefill_tokens_per_s=self._costs.prefill_tokens_per_s,
        )

    async def heartbeat(self) -> None:
        """Returns at once while the engine runs; see `Engine.heartbeat`."""
        self._check_alive()

    def pids(self) -> tuple[int, ...]:
        """None: it runs in this process."""
        return ()

    async def close(self) -> None:
        """Stop passing time; requests in flight see a dead engine. Idempotent."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)
        if self._trunk is not None:
            await self._trunk.close()

    async def _open_trunk(self) -> None:
        if self._trunk is None:
            raise EngineStartError(
                f"the simulated engine of model {self._name!r} cannot use pools: it has no experts; "
                "set `engine.simulated.experts`"
            )
        if not isinstance(self._clock, RealClock):
            raise EngineStartError(
                f"the simulated engine of model {self._name!r} cannot use pools on a virtual clock, as they take real "
                "time; set `engine.simulated.clock: real`"
            )
        await self._trunk.open()

    async def _run(self) -> None:
        """One step after the other, each taking its time. Steps follow a schedule, so delays do not add up."""
        due = self._clock.now()
        try:
            while True:
                step = self._scheduler.begin()
                if step is None:
                    self._work_came.clear()
                    await self._work_came.wait()
                    due = self._clock.now()
                    continue
                due = await self._pass(step, due)
                for made in self._scheduler.finish(step):
                    active = self._active.get(made.key)
                    if active is not None and active.take(made):
                        # A stop sequence ended this choice before its limit.
                        self._scheduler.cancel(made.key)
        except EngineDeadError as error:
            self._why_dead = str(error)
            _log.error("%s", error)
        finally:
            dead = EngineDeadError(self._why_dead)
            for active in tuple(self._active.values()):
                if not active.ended.done():
                    active.ended.set_exception(dead)

    async def _pass(self, step: Step, due: float) -> float:
        """Let the time of a step pass that begins at `due`; returns when the next one begins, by the engine's clock.

        A trunk's step takes as long as its pools do if that is longer. Raises `EngineDeadError` if they cannot be used.
        """
        due += step.duration_s
        begun_s, pooled = self._clock.now(), None if self._trunk is None else self._trunk.begin(step)
        await self._clock.sleep_until(due)
        if self._trunk is not None and pooled is not None:
            due = max(due, begun_s + await self._trunk.finish(pooled))
        return due

    def _check_alive(self) -> None:
        if self._loop is None or self._loop.done():
            raise EngineDeadError(self._why_dead)

    def _check_room(self, sequences: int) -> None:
        if len(self._active) + sequences > MAX_SEQUENCES:
            raise ApiError(503, "engine_full", f"The engine holds {MAX_SEQUENCES} sequences; send this again later.")
