"""Translates a model's configuration into vLLM's own arguments and environment."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from cluster.config.check_models import cores_of
from deployments.processes import CORES_VARIABLE, OWNER_VARIABLE
from deployments.processor import computes_bfloat16

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs

    from cluster.config.model import ModelConfig
    from deployments.experts.trunk_files import TrunkFiles


_log = logging.getLogger(__name__)

CPU_STEP_TOKENS: Final = 128
"""Measured on two cores without AVX-512, where 256 tokens of SmolLM2-135M take a second: 0.3 s, no less throughput than with
2,048, and a time to the first token of 1.5 s at 16 streams instead of 5 s."""

Dtype: TypeAlias = Literal["auto", "bfloat16", "float16", "float32"]
"""Number formats of a model's configuration."""


@dataclass(frozen=True, slots=True)
class VllmLaunch:
    """What one engine is started with."""

    name: str
    """The model's name in the cluster; what the engine calls it in its responses."""
    path: Path
    """Folder of the checkpoint."""
    model: ModelConfig
    trunk: TrunkFiles | None = None
    """Where it finds the pools that its experts live in; None: it has them itself."""

    def at_kv_precision(self, precision: str) -> VllmLaunch:
        """The same with another KV precision; `auto` is the one of the config."""
        if precision == "auto":
            return self
        engine = self.model.engine.model_copy(update={"kv_cache_dtype": precision})
        return replace(self, model=self.model.model_copy(update={"engine": engine}))


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU that a process could use."""
    return Path("/dev/nvidia0").exists()


def engine_environment(model: ModelConfig, accelerated: bool) -> dict[str, str]:
    """Environment variables of the replica that hosts the engine.

    The worker runs inside the engine core: on few cores a core that spins on its ring buffer to the worker starves
    everything else. vLLM binds workers only where they are processes of their own, and there all engines to the same first
    core; so its binding is off, and an engine process binds itself (`vllm_plugin`).
    """
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        OWNER_VARIABLE: str(os.getpid()),
    }
    if not accelerated:
        environment["OMP_NUM_THREADS"] = str(model.replicas.omp_threads)
        if model.engine.enforce_eager:
            # `enforce_eager` is about the model alone. vLLM compiles parts of its sampler, too, when they are first used:
            # on a CPU the first request for log probabilities would stop the engine for up to a minute.
            environment["TORCH_COMPILE_DISABLE"] = "1"
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        cores = usable_cores(model)
        if cores:
            environment[CORES_VARIABLE] = ",".join(map(str, sorted(cores)))
    if model.source is None or not model.source.startswith("hf:"):
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


def usable_cores(model: ModelConfig) -> set[int]:
    """The cores that the engine is to be bound to and may use; empty: it is not bound.

    A container often may not use core 0 or 1. An engine that runs unbound there is better than one that does not run.
    """
    if model.replicas.cpu_cores is None:
        return set()
    wanted = set(cores_of(model.replicas.cpu_cores))
    usable = wanted & os.sched_getaffinity(0)
    if usable != wanted:
        _log.warning(
            "some cores of `replicas.cpu_cores` are not there for this process: %d of %d can be used",
            len(usable),
            len(wanted),
        )
    return usable


def step_tokens(model: ModelConfig, accelerated: bool) -> int | None:
    """Tokens that one engine step may process; None leaves it to vLLM.

    A step cannot be broken off: for as long as it lasts, what a client that went away held stays held, and all streams
    stand still. vLLM's 2,048 tokens and more are a fraction of a second on a GPU and up to eight on a CPU.
    """
    if model.engine.max_num_batched_tokens is not None or accelerated:
        return model.engine.max_num_batched_tokens
    return max(CPU_STEP_TOKENS, model.engine.max_num_seqs)


def served_dtype(asked: Dtype, accelerated: bool) -> Dtype:
    """Number format that vLLM is told. `auto` is the checkpoint's own, save on a CPU that is slow in it."""
    if asked == "auto" and not accelerated and not computes_bfloat16():
        return "float32"
    return asked


def engine_args(launch: VllmLaunch, accelerated: bool) -> AsyncEngineArgs:
    """vLLM's arguments for a model. `kv_window_tokens` caps the length of a sequence, and with it its KV."""
    from vllm.config import StructuredOutputsConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

    engine = launch.model.engine
    length = engine.max_model_len
    if engine.kv_window_tokens is not None:
        length = engine.kv_window_tokens if length is None else min(engine.kv_window_tokens, length)
    in_process = not accelerated and engine.tensor_parallel_size == 1
    return AsyncEngineArgs(
        model=str(launch.path),
        served_model_name=[launch.name],
        dtype=served_dtype(engine.dtype, accelerated),
        max_model_len=length,  # type: ignore[arg-type] # None is vLLM's own default
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=step_tokens(launch.model, accelerated),
        kv_cache_memory_bytes=engine.kv_cache_bytes,
        kv_cache_dtype=engine.kv_cache_dtype,
        enforce_eager=engine.enforce_eager,
        tensor_parallel_size=engine.tensor_parallel_size,
        enable_expert_parallel=engine.expert_parallel,
        quantization=engine.quantization,
        enable_prefix_caching=engine.prefix_caching,
        seed=engine.seed,
        # Left to itself, vLLM compiles every request with the backend that its first one took, so a schema checked by one can
        # fail in the other, in the middle of an answer. One backend refuses at once what it cannot do.
        structured_outputs_config=StructuredOutputsConfig(backend="xgrammar"),
        distributed_executor_backend="uni" if in_process else None,
        worker_extension_cls="deployments.engines.vllm_worker.PointsmanWorker",
        # Every block: one that is counted costs a microsecond, and few of them make a pool.
        kv_cache_metrics=True,
        kv_cache_metrics_sample=1.0,
        disable_log_stats=False,
        enable_log_requests=False,
        trust_remote_code=False,
        # Where vLLM tells the experts of a token, nothing of ours counts them. It refuses models and runners that cannot.
        enable_return_routed_experts=accelerated and engine.return_routed_experts,
    )
