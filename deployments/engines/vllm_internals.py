"""What reaches into vLLM's engine, its core and its model runner.

`vllm_tokenizing` and `vllm_window` reach into its renderer, `vllm_special_tokens` into a tokenizer; the rest uses vLLM's
classes as they are.
Pinned to one release and checked at start-up: a vLLM that moved one of these parts is refused by name instead of
misbehaving later.
"""

from __future__ import annotations

import functools
import inspect
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deployments.engines import vllm_expert_core as experts
from deployments.engines import vllm_kv_core as kv
from deployments.engines.protocol import EngineStartError

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.core import EngineCore

SUPPORTED_VERSION = "0.32.0"

SNAPSHOT_METHOD = "pointsman_snapshot"
BLOCKERS_METHOD = "pointsman_kv_blockers"
PRECISION_METHOD = "pointsman_set_kv_precision"
LOST_METHOD = "pointsman_lost"
EXPERTS_METHOD = "pointsman_experts"
EXPERT_LOAD_METHOD = "pointsman_expert_load"
EXPERT_LOG_METHOD = "pointsman_expert_log"
COUNT_EXPERTS_METHOD = "pointsman_count_experts"

CONTEXT_CLOSE_S = 1.0


@dataclass(frozen=True, slots=True)
class CoreSnapshot:
    """What the engine core answers to a heartbeat."""

    running: int
    waiting: int
    kv_usage: float
    """Fraction of KV blocks in use, 0 to 1."""
    preempted: int = 0
    """Preemptions for want of KV blocks, since start."""
    forced: int = 0
    """Preemptions by changes of KV precision, since start."""
    recomputed: int = 0
    """Tokens whose KV was computed again after a preemption, since start."""


def check_version() -> None:
    """Raises `EngineStartError` if the installed vLLM is not the one these internals were written against."""
    import vllm

    # What follows a plus only names the build, for example `+cu129`.
    if vllm.__version__.partition("+")[0] != SUPPORTED_VERSION:
        raise EngineStartError(
            f"vLLM {vllm.__version__} is installed, Pointsman reaches into {SUPPORTED_VERSION}: "
            "install the locked environment (`make env`) or a Pointsman release for that vLLM."
        )


def _snapshot(core: EngineCore) -> list[float]:
    """Runs in the engine core between two steps, so it also proves that the core's loop turns."""
    scheduler: Any = core.scheduler
    usage, ledger = scheduler.kv_cache_manager.usage, kv.LEDGER
    counted = [ledger.preempted_for_room, ledger.forced, ledger.recomputed]
    return [len(scheduler.running), len(scheduler.waiting), usage, *counted]


def _lost(_core: EngineCore, request_id: str) -> list[int]:
    return kv.LEDGER.take(request_id)


def install_in_engine_core() -> None:
    """Called in every engine process by vLLM's plugin hook: methods of ours, and seeds that a CPU survives."""
    from vllm.platforms import current_platform
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.sched import scheduler
    from vllm.v1.engine.core import EngineCore

    methods = {
        SNAPSHOT_METHOD: _snapshot,
        BLOCKERS_METHOD: kv.blockers,
        PRECISION_METHOD: kv.set_kv_precision,
        LOST_METHOD: _lost,
        EXPERTS_METHOD: experts.start,
        EXPERT_LOAD_METHOD: experts.load,
        EXPERT_LOG_METHOD: experts.log,
        COUNT_EXPERTS_METHOD: experts.count,
    }
    for name, method in methods.items():
        setattr(EngineCore, name, method)
    kv.install(scheduler, KVCacheManager)
    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner

        keep_seeds_of_partial_prompts(CPUModelRunner)


def keep_seeds_of_partial_prompts(runner: type[Any]) -> None:
    """Keep a model runner from drawing with the generator of a seeded request whose prompt is not read to its end.

    vLLM samples for such a request, too, throws the token away and rewinds the generator by its offset. A CPU's generator
    has none: it raises, and the engine dies of any seeded prompt that takes more than one step. Here the generator is put
    aside for that step, so the token that nobody sees comes from the shared generator and nothing needs rewinding.
    """
    sample = runner.sample_tokens

    @functools.wraps(sample)
    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        partial = self.discard_request_mask.np
        aside = {row: generators.pop(row) for row in list(generators) if partial[row]}
        try:
            return sample(self, *args, **kwargs)
        finally:
            generators.update(aside)

    runner.sample_tokens = sample_tokens


async def core_snapshot(engine: AsyncLLM) -> CoreSnapshot:
    """Ask the engine core for its state. Returns once the core has finished the step that it is in."""
    running, waiting, usage, *counted = await engine.engine_core.call_utility_async(SNAPSHOT_METHOD)
    return CoreSnapshot(int(running), int(waiting), float(usage), *map(int, counted))


def require_core_pids(engine: AsyncLLM) -> None:
    """Raises `EngineStartError` if the core's processes cannot be found: nobody would notice their death."""
    if not core_pids(engine):
        raise EngineStartError(f"vLLM does not tell its engine processes (expected vLLM {SUPPORTED_VERSION}).")


def core_pids(engine: AsyncLLM) -> tuple[int, ...]:
    """Process ids of the engine core processes that this front end started; empty if it does not tell."""
    resources: Any = getattr(engine.engine_core, "resources", None)
    manager = getattr(resources, "engine_manager", None)
    processes = getattr(manager, "processes", ())
    return tuple(process.pid for process in processes if process.pid is not None)


def close_context(engine: AsyncLLM) -> None:
    """Close the ZeroMQ context of an engine that was shut down; vLLM leaves it to the garbage collector.

    Call it on the event loop that the sockets belong to. Returns within `CONTEXT_CLOSE_S`, closed or not.
    """
    context: Any = getattr(getattr(engine.engine_core, "resources", None), "ctx", None)
    if context is None:
        return
    for socket in list(context._sockets):
        socket.close(linger=0)
    # The event loop's context is a second face of the one that is to be closed.
    owner = context._shadow_obj or context
    # It waits for every socket. One that was forgotten must not keep the replica from ending.
    closing = threading.Thread(target=owner.term, name="zmq-term", daemon=True)
    closing.start()
    closing.join(CONTEXT_CLOSE_S)


def use_ambient_tracer(engine: AsyncLLM) -> None:
    """Let vLLM make its request span through the process's own tracer provider.

    vLLM asks for an OTLP endpoint and then replaces the global provider and exports on its own. Its span is made
    through the global provider, so with the provider that the replica already has only the two switches are needed.
    """
    if not hasattr(engine.output_processor, "tracing_enabled"):
        raise EngineStartError(f"vLLM's output processor has no `tracing_enabled` (expected {SUPPORTED_VERSION}).")
    engine.output_processor.tracing_enabled = True
    engine.observability_config.otlp_traces_endpoint = "ambient"


def check_parts() -> None:
    """Raises `EngineStartError` naming the first internal part that is not where this release has it."""
    check_version()
    from vllm.distributed.aux_output_connector.connector import AuxOutputSchedulerConnector
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
    from vllm.renderers.base import BaseRenderer
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.core_client import AsyncMPClient
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    if not isinstance(getattr(KVCacheManager, "usage", None), property):
        raise EngineStartError(f"vLLM's KVCacheManager.usage is gone (expected vLLM {SUPPORTED_VERSION}).")
    for owner, name in (
        (AsyncMPClient, "call_utility_async"),
        (EngineCore, "step"),
        (EngineCore, "_initialize_kv_caches"),
        (Scheduler, "_preempt_request"),
        (Scheduler, "reset_prefix_cache"),
        (KVCacheManager, "record_prefix_cache_stats"),
        (KVCacheManager, "prefix_cache_lookup_enabled"),
        (CPUModelRunner, "sample_tokens"),
        (CPUModelRunner, "execute_model"),
        (BaseRouter, "set_capture_fn"),
        (AuxOutputSchedulerConnector, "take_output"),
        (BaseRenderer, "_tokenize_prompt"),
        (BaseRenderer, "_build_tokens_prompt"),
    ):
        if not inspect.isfunction(getattr(owner, name, None)):
            raise EngineStartError(f"vLLM's {owner.__name__}.{name} is gone (expected vLLM {SUPPORTED_VERSION}).")
