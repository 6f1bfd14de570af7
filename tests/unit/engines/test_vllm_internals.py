"""What is reached for inside vLLM is looked for when an engine starts, and missed by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from deployments.engines import vllm_internals
from deployments.engines.protocol import EngineStartError

# Importing vLLM and its dependencies warns about many things that are not ours.
pytestmark = pytest.mark.filterwarnings("ignore")


def engine_with(**core: object) -> Any:
    return SimpleNamespace(engine_core=SimpleNamespace(**core))


def manager_of(*pids: int | None) -> SimpleNamespace:
    return SimpleNamespace(engine_manager=SimpleNamespace(processes=[SimpleNamespace(pid=pid) for pid in pids]))


def test_the_installed_release_has_all_parts() -> None:
    vllm_internals.check_parts()


@pytest.mark.parametrize("version", ["0.31.0", "0.33.0", "0.32.01", "0.32.0.dev3", "dev"])
def test_another_release_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr("vllm.__version__", version)
    with pytest.raises(EngineStartError, match=rf"{version} is installed.*make env"):
        vllm_internals.check_parts()


def test_a_build_of_the_same_release_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.__version__", "0.32.0+cu129")
    vllm_internals.check_parts()


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("vllm.v1.engine.core_client.AsyncMPClient.call_utility_async", "AsyncMPClient.call_utility_async"),
        ("vllm.v1.engine.core.EngineCore.step", "EngineCore.step"),
        ("vllm.renderers.base.BaseRenderer._tokenize_prompt", "BaseRenderer._tokenize_prompt"),
        ("vllm.renderers.base.BaseRenderer._build_tokens_prompt", "BaseRenderer._build_tokens_prompt"),
        ("vllm.v1.worker.gpu_model_runner.GPUModelRunner.sample_tokens", "CPUModelRunner.sample_tokens"),
        ("vllm.v1.core.kv_cache_manager.KVCacheManager.usage", "KVCacheManager.usage"),
    ],
)
def test_a_part_that_has_moved_is_named(monkeypatch: pytest.MonkeyPatch, part: str, named: str) -> None:
    monkeypatch.delattr(part)
    with pytest.raises(EngineStartError, match=named):
        vllm_internals.check_parts()


def test_processes_that_cannot_be_found_are_an_error_of_the_start() -> None:
    vllm_internals.require_core_pids(engine_with(resources=manager_of(7)))
    for blind in (engine_with(), engine_with(resources=SimpleNamespace()), engine_with(resources=manager_of(None))):
        with pytest.raises(EngineStartError, match="does not tell its engine processes"):
            vllm_internals.require_core_pids(blind)


@pytest.mark.parametrize("fails", [False, True])
def test_generators_of_partial_prompts_are_put_aside_for_a_step(fails: bool) -> None:
    class Runner:
        def __init__(self) -> None:
            self.input_batch = SimpleNamespace(generators={0: "a", 2: "b", 3: "c"})
            self.discard_request_mask = SimpleNamespace(np=[False, True, True, False])
            self.seen: set[int] = set()

        def sample_tokens(self, grammar: str) -> str:
            self.seen = set(self.input_batch.generators)
            if fails:
                raise RuntimeError
            return grammar

    vllm_internals.keep_seeds_of_partial_prompts(Runner)
    runner = Runner()
    if fails:
        with pytest.raises(RuntimeError):
            runner.sample_tokens("grammar")
    else:
        assert runner.sample_tokens("grammar") == "grammar"
    assert runner.seen == {0, 3}
    assert runner.input_batch.generators == {0: "a", 2: "b", 3: "c"}
