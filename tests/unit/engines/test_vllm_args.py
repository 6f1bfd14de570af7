from __future__ import annotations

from typing import Any

import pytest

from cluster.config.base import Kind
from cluster.config.engine import EngineConfig
from cluster.config.model import ModelConfig, ReplicaConfig
from deployments.engines import vllm_args
from deployments.engines.vllm_args import engine_environment, served_dtype, step_tokens
from deployments.processes import CORES_VARIABLE


def model(source: str = "embedded:dense", **engine: Any) -> ModelConfig:
    replicas = ReplicaConfig(omp_threads=3, cpu_cores="0-1")
    return ModelConfig(
        kind=Kind.DENSE, roles=("strong",), source=source, engine=EngineConfig(**engine), replicas=replicas
    )


def test_the_worker_shares_the_engine_cores_process_and_is_bound() -> None:
    environment = engine_environment(model(), accelerated=False)
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert environment["OMP_NUM_THREADS"] == "3"
    # vLLM's own binding does nothing for such a worker.
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert environment[CORES_VARIABLE] == "0,1"


def test_cores_that_are_not_there_are_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {1, 2, 3})
    assert engine_environment(model(), accelerated=False)[CORES_VARIABLE] == "1"
    assert "1 of 2" in caplog.text
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {2, 3})
    assert CORES_VARIABLE not in engine_environment(model(), accelerated=False)


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1})


def test_an_accelerator_is_not_bound_to_cores() -> None:
    environment = engine_environment(model(enforce_eager=True), accelerated=True)
    assert not {"OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND", "TORCH_COMPILE_DISABLE", CORES_VARIABLE} & set(
        environment
    )


@pytest.mark.parametrize("eager", [True, False])
def test_an_eager_engine_compiles_nothing_at_all(eager: bool) -> None:
    assert ("TORCH_COMPILE_DISABLE" in engine_environment(model(enforce_eager=eager), accelerated=False)) is eager


@pytest.mark.parametrize(("source", "offline"), [("embedded:dense", True), ("path:/models/x", True), ("hf:a/b", False)])
def test_only_models_of_the_hub_may_ask_it(source: str, offline: bool) -> None:
    assert ("HF_HUB_OFFLINE" in engine_environment(model(source), accelerated=False)) is offline


@pytest.mark.parametrize(("fast_bfloat16", "auto"), [(True, "auto"), (False, "float32")])
def test_a_cpu_is_not_made_to_compute_in_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, fast_bfloat16: bool, auto: str
) -> None:
    monkeypatch.setattr(vllm_args, "computes_bfloat16", lambda: fast_bfloat16)
    assert served_dtype("auto", accelerated=False) == auto
    assert served_dtype("auto", accelerated=True) == "auto", "a GPU is asked for what the checkpoint holds"
    assert served_dtype("bfloat16", accelerated=False) == "bfloat16", "what was asked for is not second-guessed"


@pytest.mark.parametrize(
    ("asked", "sequences", "accelerated", "tokens"),
    [
        (None, 32, False, 128),
        (None, 500, False, 500),
        (None, 32, True, None),
        (64, 32, False, 64),
        (8192, 32, True, 8192),
    ],
)
def test_a_cpu_takes_short_steps_unless_told_otherwise(
    asked: int | None, sequences: int, accelerated: bool, tokens: int | None
) -> None:
    assert step_tokens(model(max_num_batched_tokens=asked, max_num_seqs=sequences), accelerated) == tokens
