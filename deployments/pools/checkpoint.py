"""The experts of a model as its pools load them: from a checkpoint, or made up for a simulated engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from deployments.pools.spec import PoolsSpec

if TYPE_CHECKING:
    import torch

    from deployments.experts.kernels import ExpertKernel
    from deployments.experts.synthetic import SyntheticCheckpoint
    from deployments.experts.weights import Checkpoint


def open_checkpoint(spec: PoolsSpec) -> Checkpoint | SyntheticCheckpoint:
    """Reads headers, no weights. Raises `CheckpointError`."""
    if spec.path is not None:
        from deployments.experts.weights import Checkpoint

        return Checkpoint(spec.path)
    from deployments.experts.synthetic import simulated_checkpoint

    settings = spec.config.engine.simulated
    if settings is None or settings.experts is None:
        raise ValueError(f"model {spec.model!r} has neither a checkpoint nor simulated experts")
    return simulated_checkpoint(settings.experts, settings.seed)


def expert_dtype(spec: PoolsSpec) -> str:
    """Number format that the engine computes in, which pools have to share."""
    from deployments.engines.vllm_args import served_dtype

    if spec.path is None:
        return "float32"
    asked = served_dtype(spec.config.engine.dtype, accelerated=False)
    if asked != "auto":
        return asked
    config = json.loads((spec.path / "config.json").read_text(encoding="utf-8"))
    own = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    # As vLLM has it: what is kept in float32 is computed in bfloat16 unless it is asked for.
    return "bfloat16" if own == "float32" else own


def expert_kernel_of(spec: PoolsSpec) -> Callable[[torch.dtype, int], ExpertKernel]:
    """Makes the kernel: vLLM's own where the processor has it, plain torch for a simulated model."""
    if spec.path is not None:
        from deployments.engines.vllm_expert_kernel import expert_kernel

        return expert_kernel
    from deployments.experts.kernels import TorchKernel

    return lambda dtype, _hidden: TorchKernel(dtype)
