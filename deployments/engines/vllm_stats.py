"""Keeps the running totals of a vLLM engine, through vLLM's stat logger extension point."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from vllm.v1.metrics.loggers import StatLoggerBase

from deployments.engines.protocol import EngineStats

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats


LEAST_READ: Final = 64
"""Tokens of a prompt from which its time says how fast prompts are read; shorter ones take the time of a step, whatever they hold."""


class StatsKeeper:
    """One per engine; `logger` is what vLLM calls after every step. Costs a few additions per step."""

    def __init__(self) -> None:
        self.stats = EngineStats()
        self._prompt = self._generated = self._queries = self._hits = 0
        self._evictions, self._lifetime_s = 0, 0.0
        self._fastest = 0.0

    def logger(self, vllm_config: VllmConfig, engine_index: int = 0) -> StatLoggerBase:
        """vLLM's factory call."""
        return _StepLogger(self, vllm_config, engine_index)

    def sized(self, blocks: int, block_tokens: int, precision: str, switches: int = 0) -> None:
        """Note the pool's size and number format once the engine knows them, and after each change."""
        self.stats = replace(
            self.stats, kv_blocks=blocks, kv_block_tokens=block_tokens, kv_precision=precision, kv_switches=switches
        )

    def recount(self, preempted: int, forced: int, recomputed: int) -> None:
        """Note what the engine core said of preemptions: for want of blocks, by changes of precision, and what all cost.

        vLLM's own count of them does not tell the two kinds apart, and leaves out requests that were cancelled before their
        next token.
        """
        self.stats = replace(self.stats, preemptions=preempted, forced_preemptions=forced, recomputed_tokens=recomputed)

    def observe(self, running: int, waiting: int, kv_usage: float) -> None:
        """Note what the engine core said of its queues and pool."""
        self.stats = replace(
            self.stats,
            running=running,
            waiting=waiting,
            kv_usage=kv_usage,
            kv_evictions=self._evictions,
            kv_lifetime_s=self._lifetime_s,
            prefix_queries=self._queries,
            prefix_hits=self._hits,
            prompt_tokens=self._prompt,
            generated_tokens=self._generated,
            prefill_tokens_per_s=self._fastest,
        )

    def add(self, scheduler: SchedulerStats | None, iteration: IterationStats | None) -> None:
        """Take in one engine step."""
        if iteration is not None:
            self._prompt += iteration.num_prompt_tokens
            self._generated += iteration.num_generation_tokens
            for request in iteration.finished_requests:
                read = request.num_prompt_tokens - request.num_cached_tokens
                if read >= LEAST_READ and request.prefill_time > 0 and not request.num_preemptions:
                    self._fastest = max(self._fastest, read / request.prefill_time)
        if scheduler is not None:
            self._queries += scheduler.prefix_cache_stats.queries
            self._hits += scheduler.prefix_cache_stats.hits
            for event in scheduler.kv_cache_eviction_events:
                self._evictions += 1
                self._lifetime_s += event.lifetime_seconds
            self.observe(scheduler.num_running_reqs, scheduler.num_waiting_reqs, scheduler.kv_cache_usage)


class _StepLogger(StatLoggerBase):
    def __init__(self, keeper: StatsKeeper, vllm_config: VllmConfig, engine_index: int = 0) -> None:
        self._keeper = keeper

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        self._keeper.add(scheduler_stats, iteration_stats)

    def log_engine_initialized(self) -> None:
        """Nothing to say; the replica logs its own start."""
