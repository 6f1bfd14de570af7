"""A live change of KV precision, in vLLM's engine core, and what each preemption costs a request.

Everything that runs goes back to the waiting queue, the KV cache is made anew in the other number format out of the same
bytes, and the requests are computed again, with the tokens that they have already. It happens between two engine steps.
Part of the internals that `vllm_internals` pins and checks.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

from cluster.precision.measures import FP8, OWN

_log = logging.getLogger(__name__)

LOWER: Final = (FP8,)
"""Precisions that a KV cache can be lowered to."""
EXIT_HALF_CHANGED: Final = 70
"""Exit status of an engine that could neither change nor go back."""
MAX_NOTED: Final = 4096
"""Requests whose preemptions are kept until somebody asks; the oldest go first."""


@dataclass(slots=True)
class Lost:
    """What preemptions cost one request."""

    preemptions: int = 0
    forced: int = 0
    """Of these, by a change of precision."""
    recomputed: int = 0
    """Tokens whose KV was computed again."""
    pending: int = 0
    """Tokens that were computed when it was preempted last; counted once it is scheduled again."""


@dataclass(slots=True)
class Ledger:
    """What preemptions cost, request by request and in all. One per engine process, as there is one engine core."""

    forcing: bool = False
    preempted_for_room: int = 0
    forced: int = 0
    recomputed: int = 0
    requests: OrderedDict[str, Lost] = field(default_factory=OrderedDict)

    def preempted(self, request_id: str, computed: int, lookup: bool) -> None:
        """A request lost the KV of so many tokens. `lookup`: whether some may be found again in the prefix cache."""
        lost = self.requests.pop(request_id, None) or Lost()
        self.requests[request_id] = lost
        lost.preemptions += 1
        lost.forced += self.forcing
        self.forced += self.forcing
        self.preempted_for_room += not self.forcing
        lost.pending = computed
        if not lookup:
            self.resumed(request_id, 0)
        if len(self.requests) > MAX_NOTED:
            self.requests.popitem(last=False)

    def resumed(self, request_id: str, found: int) -> None:
        """A preempted request is scheduled again, and so many tokens were found in the prefix cache."""
        lost = self.requests.get(request_id)
        if lost is not None and lost.pending:
            again = max(0, lost.pending - found)
            lost.recomputed += again
            self.recomputed += again
            lost.pending = 0

    def take(self, external_id: str) -> list[int]:
        """Preemptions, forced ones and recomputed tokens of a request, all of its choices together; forgotten then."""
        total = [0, 0, 0]
        for request_id in [one for one in self.requests if external_of(one) == external_id]:
            lost = self.requests.pop(request_id)
            total = [total[0] + lost.preemptions, total[1] + lost.forced, total[2] + lost.recomputed]
        return total


LEDGER: Final = Ledger()


def external_of(request_id: str) -> str:
    """The id that a request was given, from the one that vLLM keeps it by: `[CHOICE_]ID-RANDOM`."""
    given = request_id.rpartition("-")[0]
    choice, _, rest = given.partition("_")
    return rest if choice.isdecimal() and rest else given


def install(scheduler_module: Any, manager_class: Any) -> None:
    """Called in every engine process before the engine core is made."""

    @functools.wraps(manager_class, updated=())
    def make_manager(**settings: Any) -> Any:
        manager = manager_class(**settings)
        # A cache of another size is managed with the very same settings.
        manager.pointsman_remake = functools.partial(make_manager, **settings)
        return manager

    scheduler_module.KVCacheManager = make_manager
    scheduler_class = scheduler_module.Scheduler
    preempt, record = scheduler_class._preempt_request, manager_class.record_prefix_cache_stats

    @functools.wraps(preempt)
    def preempt_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        lookup = self.kv_cache_manager.prefix_cache_lookup_enabled(request)
        LEDGER.preempted(request.request_id, request.num_computed_tokens, lookup)
        preempt(self, request, *args, **kwargs)

    @functools.wraps(record)
    def record_prefix_cache_stats(self: Any, request: Any, num_hits: int) -> None:
        if request.num_preemptions:
            LEDGER.resumed(request.request_id, num_hits)
        record(self, request, num_hits)

    scheduler_class._preempt_request = preempt_request
    manager_class.record_prefix_cache_stats = record_prefix_cache_stats


def blockers(core: Any) -> list[str]:
    """Why the KV precision of this engine cannot change while it runs, each by name; empty: it can."""
    config = core.vllm_config
    scheduler, cache, parallel = core.scheduler, config.cache_config, config.parallel_config
    graphs = getattr(config.compilation_config.cudagraph_mode, "name", None)
    found = [
        name
        for name, present in (
            ("asynchronous scheduling", config.scheduler_config.async_scheduling or core.batch_queue is not None),
            ("CUDA graphs", graphs not in (None, "NONE")),
            ("a KV connector", scheduler.connector is not None),
            ("KV events", scheduler.enable_kv_cache_events),
            ("speculative decoding", config.speculative_config is not None),
            ("several KV cache groups", len(scheduler.kv_cache_config.kv_cache_groups) != 1),
            ("no KV cache manager that can be made again", not hasattr(scheduler.kv_cache_manager, "pointsman_remake")),
            ("pipeline parallelism", parallel.pipeline_parallel_size > 1),
            ("data parallelism", parallel.data_parallel_size > 1),
            ("context parallelism", parallel.decode_context_parallel_size > 1),
            (f"the model's own KV precision {cache.cache_dtype}", cache.cache_dtype not in (OWN, *LOWER)),
        )
        if present
    ]
    for lower in LOWER:
        for worker in core.collective_rpc("pointsman_kv_blockers", args=(lower,)):
            found += [reason for reason in worker if reason not in found]
    return found


def set_kv_precision(core: Any, precision: str) -> list[float]:
    """Change the precision; returns seconds, preempted requests, tokens to compute again, blocks before and after.

    Raises `RuntimeError` if the engine could not change and is as it was. An engine that can neither change nor go back
    ends: half changed, it would answer with noise.
    """
    began = time.monotonic()
    scheduler, cache = core.scheduler, core.vllm_config.cache_config
    before = cache.cache_dtype
    blocks = scheduler.kv_cache_manager.block_pool.num_gpu_blocks
    running = len(scheduler.running)
    tokens = sum(request.num_computed_tokens for request in scheduler.running)
    LEDGER.forcing = True
    try:
        scheduler.reset_prefix_cache(reset_running_requests=True)
    finally:
        LEDGER.forcing = False
    try:
        _rebuild(core, precision)
    except Exception as error:
        _log.exception("the KV precision could not be changed to %s", precision)
        _go_back(core, before)
        raise RuntimeError(
            f"the KV cache could not be made in {precision} ({type(error).__name__}); it is as it was"
        ) from error
    after = scheduler.kv_cache_manager.block_pool.num_gpu_blocks
    return [time.monotonic() - began, running, tokens, blocks, after]


def _go_back(core: Any, before: str) -> None:
    try:
        _rebuild(core, before)
    except BaseException:  # noqa: BLE001 - whatever it was, what is half changed must not answer
        _log.exception("the KV precision could not be changed back to %s either: this engine ends", before)
        logging.shutdown()
        os._exit(EXIT_HALF_CHANGED)


def _rebuild(core: Any, precision: str) -> None:
    """Make the KV cache anew. It has the bytes that it had, so nothing is measured and nothing is warmed up again."""
    scheduler, executor = core.scheduler, core.model_executor
    core.vllm_config.cache_config.cache_dtype = precision
    workers = core.collective_rpc("pointsman_set_kv_dtype", args=(precision,))
    available = [core.available_gpu_memory_for_kv_cache] * len(workers)
    executor.determine_available_memory = lambda: available
    executor.compile_or_warm_up_model = lambda: None
    try:
        config = core._initialize_kv_caches(core.vllm_config)
    finally:
        del executor.determine_available_memory, executor.compile_or_warm_up_model
    scheduler.kv_cache_config = config
    scheduler.kv_cache_manager = scheduler.kv_cache_manager.pointsman_remake(kv_cache_config=config)
    if scheduler.kv_metrics_collector is not None:
        # Blocks have new numbers.
        scheduler.kv_metrics_collector.reset()
