from __future__ import annotations

from pathlib import Path

from cluster.config.base import Kind
from cluster.config.engine import EngineConfig
from cluster.config.model import ModelConfig
from loadtests.bare_server import Binding, server_arguments, server_environment

MODEL = ModelConfig(
    kind=Kind.DENSE,
    roles=("strong",),
    source="embedded:dense",
    engine=EngineConfig(
        dtype="bfloat16",
        max_model_len=2048,
        max_num_seqs=32,
        max_num_batched_tokens=2048,
        kv_cache_bytes=536870912,
        enforce_eager=True,
    ),
)


def test_engine_arguments_are_those_of_the_config() -> None:
    arguments = server_arguments("dense", MODEL, Path("/models/dense"), 8123, Binding())
    text = " ".join(arguments)
    for part in (
        "--model /models/dense",
        "--served-model-name dense",
        "--host 127.0.0.1 --port 8123",
        "--dtype bfloat16",
        "--max-model-len 2048",
        "--max-num-seqs 32",
        "--max-num-batched-tokens 2048",
        "--kv-cache-memory-bytes 536870912",
        "--kv-cache-dtype auto",
        "--seed 0",
        "--distributed-executor-backend uni",
        "--enable-prefix-caching",
        "--enforce-eager",
    ):
        assert part in text
    assert "--quantization" not in text


def test_what_is_off_in_the_config_is_off_in_the_server() -> None:
    engine = MODEL.engine.model_copy(update={"prefix_caching": False, "enforce_eager": False, "kv_window_tokens": 512})
    model = MODEL.model_copy(update={"engine": engine})
    text = " ".join(server_arguments("dense", model, Path("/m"), 1, Binding(layout="processes")))
    assert "--no-enable-prefix-caching" in text
    assert "--enforce-eager" not in text
    assert "--distributed-executor-backend" not in text
    assert "--max-model-len 512" in text


def test_the_environment_is_clean_of_clusters_and_pool_overrides() -> None:
    inherited = {"PATH": "/bin", "VLLM_CPU_KVCACHE_SPACE": "4", "POINTSMAN_CLUSTER_ID": "x", "OTEL_SERVICE_NAME": "y"}
    environment = server_environment(Binding(cores="0", threads=1), inherited)
    assert environment["PATH"] == "/bin"
    assert not {"VLLM_CPU_KVCACHE_SPACE", "POINTSMAN_CLUSTER_ID", "OTEL_SERVICE_NAME"} & set(environment)
    assert environment["VLLM_PLUGINS"] == ""
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "0"
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    loose = server_environment(Binding(layout="processes", threads=2), {})
    assert loose["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert loose["OMP_NUM_THREADS"] == "2"
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in loose
    assert str(Binding(cores="0-1", threads=2, nice=5)) == "in-core, cores 0-1, 2 threads, nice 5"
