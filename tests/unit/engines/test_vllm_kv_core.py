"""The engine core's part of a change of KV precision, on a core that is made up: no vLLM is needed."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.engines import vllm_kv_core as kv
from deployments.engines.vllm_kv_core import MAX_NOTED, Ledger, external_of


class Core:
    """As much of vLLM's engine core as a change uses. Two blocks of fp8 fit where one of the model's own does."""

    def __init__(self, running: tuple[int, ...] = ()) -> None:
        self.vllm_config = SimpleNamespace(
            cache_config=SimpleNamespace(cache_dtype="auto"),
            scheduler_config=SimpleNamespace(async_scheduling=False),
            parallel_config=SimpleNamespace(
                pipeline_parallel_size=1, data_parallel_size=1, decode_context_parallel_size=1
            ),
            compilation_config=SimpleNamespace(cudagraph_mode=SimpleNamespace(name="NONE")),
            speculative_config=None,
        )
        self.scheduler = SimpleNamespace(
            running=[SimpleNamespace(request_id=f"{n}-x", num_computed_tokens=n) for n in running],
            waiting=[],
            connector=None,
            enable_kv_cache_events=False,
            kv_cache_config=SimpleNamespace(kv_cache_groups=[object()], num_blocks=10),
            kv_cache_manager=self._manager(10),
            kv_metrics_collector=SimpleNamespace(resets=0),
            reset_prefix_cache=self._reset,
        )
        self.scheduler.kv_metrics_collector.reset = self._count_reset
        self.batch_queue = None
        self.available_gpu_memory_for_kv_cache = 1000
        self.model_executor = SimpleNamespace(measure="the executor's own")
        self.workers: list[list[str]] = [[]]
        self.dtypes: list[str] = []
        self.failing: Callable[[str], bool] = lambda _: False
        self.measured: list[int] = []

    def _manager(self, blocks: int) -> SimpleNamespace:
        return SimpleNamespace(
            block_pool=SimpleNamespace(num_gpu_blocks=blocks),
            pointsman_remake=lambda kv_cache_config: self._manager(kv_cache_config.num_blocks),
        )

    def _reset(self, *, reset_running_requests: bool) -> None:
        assert reset_running_requests
        while self.scheduler.running:
            request = self.scheduler.running.pop()
            kv.LEDGER.preempted(request.request_id, request.num_computed_tokens, lookup=False)
            self.scheduler.waiting.insert(0, request)

    def _count_reset(self) -> None:
        self.scheduler.kv_metrics_collector.resets += 1

    def collective_rpc(self, method: str, args: tuple[str, ...]) -> list[Any]:
        if method == "pointsman_kv_blockers":
            return self.workers
        self.dtypes.append(args[0])
        return [None] * len(self.workers)

    def _initialize_kv_caches(self, config: Any) -> SimpleNamespace:
        dtype = config.cache_config.cache_dtype
        self.measured = self.model_executor.determine_available_memory()
        self.model_executor.compile_or_warm_up_model()
        if self.failing(dtype):
            raise MemoryError(f"no room for {dtype}")
        return SimpleNamespace(num_blocks=20 if dtype == "fp8" else 10)


@pytest.fixture(autouse=True)
def ledger(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    fresh = Ledger()
    monkeypatch.setattr(kv, "LEDGER", fresh)
    return fresh


def test_a_change_puts_everything_back_and_makes_the_pool_anew(ledger: Ledger) -> None:
    core = Core(running=(30, 40))
    pause_s, preempted, tokens, before, after = kv.set_kv_precision(core, "fp8")
    assert (preempted, tokens, before, after) == (2, 70, 10, 20)
    assert 0 <= pause_s < 1
    assert core.scheduler.running == []
    assert [request.request_id for request in core.scheduler.waiting] == ["30-x", "40-x"]
    assert core.scheduler.kv_cache_config.num_blocks == 20
    assert core.vllm_config.cache_config.cache_dtype == "fp8"
    assert core.dtypes == ["fp8"]
    # It has the bytes that it had: nothing was measured.
    assert core.measured == [1000]
    assert vars(core.model_executor) == {"measure": "the executor's own"}
    # Blocks have new numbers.
    assert core.scheduler.kv_metrics_collector.resets == 1
    assert (ledger.forced, ledger.recomputed, ledger.forcing) == (2, 70, False)
    assert kv.set_kv_precision(core, "auto")[1:] == [0, 0, 20, 10]
    assert ledger.forced == 2


def test_a_core_without_metrics_of_blocks_changes_too() -> None:
    core = Core()
    core.scheduler.kv_metrics_collector = None
    assert kv.set_kv_precision(core, "fp8")[-1] == 20


def test_a_change_that_fails_is_taken_back(ledger: Ledger) -> None:
    core = Core(running=(30,))
    core.failing = lambda dtype: dtype == "fp8"
    with pytest.raises(RuntimeError, match=r"could not be made in fp8 \(MemoryError\); it is as it was") as raised:
        kv.set_kv_precision(core, "fp8")
    assert isinstance(raised.value.__cause__, MemoryError)
    assert core.dtypes == ["fp8", "auto"]
    assert core.vllm_config.cache_config.cache_dtype == "auto"
    assert core.scheduler.kv_cache_manager.block_pool.num_gpu_blocks == 10
    assert vars(core.model_executor) == {"measure": "the executor's own"}
    # The request is not lost: it waits, and is computed again.
    assert [request.request_id for request in core.scheduler.waiting] == ["30-x"]
    assert (ledger.forced, ledger.forcing) == (1, False)
    core.failing = lambda _: False
    assert kv.set_kv_precision(core, "fp8")[-1] == 20


def test_what_is_half_changed_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(BaseException):
        pass

    statuses = []

    def leave(status: int) -> None:
        statuses.append(status)
        raise Ended

    monkeypatch.setattr(kv.os, "_exit", leave)
    monkeypatch.setattr(kv.logging, "shutdown", lambda: None)
    core = Core()
    core.failing = lambda _: True
    with pytest.raises(Ended):
        kv.set_kv_precision(core, "fp8")
    assert statuses == [kv.EXIT_HALF_CHANGED]


def test_nothing_stands_in_the_way_of_a_plain_core() -> None:
    assert kv.blockers(Core()) == []


def blocked(name: str, change: Callable[[Any], None]) -> Any:
    return pytest.param(name, change, id=name.replace(" ", "_"))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        blocked("asynchronous scheduling", lambda core: setattr(core, "batch_queue", [])),
        blocked(
            "asynchronous scheduling", lambda core: setattr(core.vllm_config.scheduler_config, "async_scheduling", True)
        ),
        blocked(
            "CUDA graphs", lambda core: setattr(core.vllm_config.compilation_config.cudagraph_mode, "name", "FULL")
        ),
        blocked("a KV connector", lambda core: setattr(core.scheduler, "connector", object())),
        blocked("KV events", lambda core: setattr(core.scheduler, "enable_kv_cache_events", True)),
        blocked("speculative decoding", lambda core: setattr(core.vllm_config, "speculative_config", object())),
        blocked(
            "several KV cache groups",
            lambda core: setattr(core.scheduler.kv_cache_config, "kv_cache_groups", [object(), object()]),
        ),
        blocked("several KV cache groups", lambda core: setattr(core.scheduler.kv_cache_config, "kv_cache_groups", [])),
        blocked(
            "no KV cache manager that can be made again",
            lambda core: delattr(core.scheduler.kv_cache_manager, "pointsman_remake"),
        ),
        blocked(
            "pipeline parallelism", lambda core: setattr(core.vllm_config.parallel_config, "pipeline_parallel_size", 2)
        ),
        blocked("data parallelism", lambda core: setattr(core.vllm_config.parallel_config, "data_parallel_size", 2)),
        blocked(
            "context parallelism",
            lambda core: setattr(core.vllm_config.parallel_config, "decode_context_parallel_size", 2),
        ),
        blocked(
            "the model's own KV precision fp8_e5m2",
            lambda core: setattr(core.vllm_config.cache_config, "cache_dtype", "fp8_e5m2"),
        ),
        blocked("attention backend ODD", lambda core: core.workers.append(["attention backend ODD"])),
    ],
)
def test_what_stands_in_the_way_is_named(name: str, change: Callable[[Any], None]) -> None:
    core = Core()
    change(core)
    assert kv.blockers(core) == [name]


def test_what_several_workers_say_is_told_once() -> None:
    core = Core()
    core.workers = [["a", "b"], ["b", "c"]]
    core.scheduler.connector = object()
    assert kv.blockers(core) == ["a KV connector", "a", "b", "c"]


def test_graphs_that_are_not_known_about_are_none() -> None:
    core = Core()
    core.vllm_config.compilation_config.cudagraph_mode = None
    assert kv.blockers(core) == []


def test_what_is_found_in_the_prefix_cache_is_not_computed_again(ledger: Ledger) -> None:
    ledger.preempted("a-1", computed=300, lookup=True)
    assert ledger.recomputed == 0
    ledger.resumed("a-1", found=256)
    ledger.resumed("a-1", found=0)
    assert ledger.recomputed == 44
    # More is found than it had: another request has computed it meanwhile.
    ledger.preempted("a-1", computed=100, lookup=True)
    ledger.resumed("a-1", found=128)
    assert ledger.take("a") == [2, 0, 44]
    assert ledger.take("a") == [0, 0, 0]
    assert ledger.recomputed == 44


def test_without_a_lookup_everything_is_computed_again(ledger: Ledger) -> None:
    ledger.preempted("a-1", computed=300, lookup=False)
    ledger.resumed("a-1", found=0)
    assert ledger.take("a") == [1, 0, 300]


def test_forced_preemptions_are_told_apart(ledger: Ledger) -> None:
    ledger.preempted("a-1", 10, lookup=False)
    ledger.forcing = True
    ledger.preempted("a-1", 20, lookup=False)
    ledger.forcing = False
    ledger.preempted("b-1", 5, lookup=False)
    assert (ledger.preempted_for_room, ledger.forced, ledger.recomputed) == (2, 1, 35)
    assert ledger.take("a") == [2, 1, 30]
    assert ledger.take("b") == [1, 0, 5]


def test_who_was_never_preempted_resumes_without_a_note(ledger: Ledger) -> None:
    ledger.resumed("a-1", 10)
    assert (ledger.recomputed, len(ledger.requests)) == (0, 0)


def test_all_choices_of_a_request_are_counted_together(ledger: Ledger) -> None:
    for request_id in ("0_chatcmpl-abc-11", "1_chatcmpl-abc-11", "2_chatcmpl-abc-11", "0_chatcmpl-abcd-11"):
        ledger.preempted(request_id, 7, lookup=False)
    assert ledger.take("chatcmpl-abc") == [3, 0, 21]
    assert list(ledger.requests) == ["0_chatcmpl-abcd-11"]


def test_the_books_are_bounded_and_the_oldest_go_first(ledger: Ledger) -> None:
    for number in range(MAX_NOTED):
        ledger.preempted(f"{number}-x", 1, lookup=False)
    # It comes back to the end of the line.
    ledger.preempted("0-x", 1, lookup=False)
    for number in range(10):
        ledger.preempted(f"new{number}-x", 1, lookup=False)
    assert len(ledger.requests) == MAX_NOTED
    assert ledger.take("1") == ledger.take("10") == [0, 0, 0]
    assert ledger.take("0") == [2, 0, 2]
    assert ledger.take("11") == [1, 0, 1]
    # What was forgotten stays in the sum.
    assert ledger.recomputed == MAX_NOTED + 11


@pytest.mark.parametrize(
    ("request_id", "given"),
    [
        ("chatcmpl-0a-9f", "chatcmpl-0a"),
        ("3_chatcmpl-0a-9f", "chatcmpl-0a"),
        ("12_cmpl-0a-1-9f", "cmpl-0a-1"),
        ("a_b-9f", "a_b"),
        ("7_-9f", "7_"),
        ("plain", ""),
    ],
)
def test_the_id_that_was_given_is_read_from_the_one_it_is_kept_by(request_id: str, given: str) -> None:
    assert external_of(request_id) == given


class Manager:
    """A KV cache manager with vLLM's two methods."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.recorded: list[int] = []

    def prefix_cache_lookup_enabled(self, request: Any) -> bool:
        return bool(self.settings.get("caching", True))

    def record_prefix_cache_stats(self, request: Any, num_hits: int) -> None:
        self.recorded.append(num_hits)


def test_what_is_installed_notes_preemptions_and_keeps_the_settings(ledger: Ledger) -> None:
    class Scheduler:
        def __init__(self, manager: Any) -> None:
            self.kv_cache_manager = manager

        def _preempt_request(self, request: Any, timestamp: float) -> None:
            request.num_computed_tokens, request.num_preemptions = 0, request.num_preemptions + 1

    class Managers(Manager):
        pass

    module = SimpleNamespace(KVCacheManager=Managers, Scheduler=Scheduler)
    kv.install(module, Managers)
    manager = module.KVCacheManager(kv_cache_config="small", block_size=128)
    again = manager.pointsman_remake(kv_cache_config="large").pointsman_remake(kv_cache_config="larger")
    assert type(again) is Managers
    assert again.settings == {"kv_cache_config": "larger", "block_size": 128}
    assert hasattr(again, "pointsman_remake")

    request = SimpleNamespace(request_id="a-1", num_computed_tokens=200, num_preemptions=0)
    manager.record_prefix_cache_stats(request, 128)
    Scheduler(manager)._preempt_request(request, 0.0)
    manager.record_prefix_cache_stats(request, 128)
    assert ledger.take("a") == [1, 0, 72]
    assert manager.recorded == [128, 128]
