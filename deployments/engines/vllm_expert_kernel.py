"""vLLM's CPU kernel for experts, in a process that has no engine.

Its library of operators is loaded by its path: importing vLLM itself takes six seconds and half a gigabyte.
"""

from __future__ import annotations

import importlib.util
import logging
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deployments.experts.kernels import ExpertKernel, TorchKernel

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

ALIGNMENT: Final = 32
"""What vLLM's kernels ask of the hidden and the intermediate size, on every processor that is named here."""


class VllmCpuKernel:
    """`cpu_fused_moe` on weights packed in advance: what an engine on this processor computes its experts with."""

    alignment = ALIGNMENT

    def __init__(self, isa: str) -> None:
        self.name = f"vllm {isa}"
        self._isa = isa

    def pack(self, w13: torch.Tensor, w2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._packed(w13), self._packed(w2)

    def _packed(self, weight: torch.Tensor) -> torch.Tensor:
        import torch

        packed = torch.empty_like(weight)
        torch.ops._C.prepack_moe_weight(weight, packed, self._isa)
        return packed

    def compute(
        self,
        out: torch.Tensor,
        x: torch.Tensor,
        packed: tuple[torch.Tensor, torch.Tensor],
        weights: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        import torch

        torch.ops._C.cpu_fused_moe(out, x, *packed, None, None, weights, slots, False, "silu", self._isa)


def expert_kernel(dtype: torch.dtype, hidden: int) -> ExpertKernel:
    """The best kernel for this processor, number format and hidden size; the log says why it is the plain one."""
    import torch

    if hidden % ALIGNMENT:
        _log.warning("experts are computed in plain torch: the hidden size %d is no multiple of %d", hidden, ALIGNMENT)
        return TorchKernel()
    try:
        _load_operators()
    except (OSError, LookupError) as error:
        _log.warning("experts are computed in plain torch: vLLM's operators cannot be loaded (%s)", error)
        return TorchKernel()
    kernel = VllmCpuKernel(_isa(dtype))
    try:
        # Whether the library has the kernel for this number format is told by calling it.
        sample = kernel.pack(
            torch.zeros(1, 2 * ALIGNMENT, hidden, dtype=dtype), torch.zeros(1, hidden, ALIGNMENT, dtype=dtype)
        )
        x = torch.zeros(1, hidden, dtype=dtype)
        kernel.compute(torch.empty_like(x), x, sample, torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int32))
    except (RuntimeError, AttributeError) as error:
        _log.warning("experts are computed in plain torch: vLLM's kernel refuses %s (%s)", dtype, error)
        return TorchKernel()
    return kernel


def _isa(dtype: torch.dtype) -> str:
    """vLLM's name for the instructions it would choose, as in its `fused_moe/experts/cpu_moe.py`."""
    import torch

    if dtype == torch.bfloat16:
        # Linux lets a process use AMX once it asked for it; one that did not is killed at the first instruction.
        if platform.machine() == "x86_64" and torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx():
            return "amx"
        if platform.machine() == "aarch64":
            return "neon"
    return "vec"


def _load_operators() -> None:
    """Load the build of vLLM's operators that vLLM itself would choose (its `platforms/cpu.py`)."""
    import torch

    if hasattr(torch.ops._C, "cpu_fused_moe"):
        return
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        raise LookupError("vLLM is not installed")
    name = "_C"
    if platform.machine() == "x86_64" and not torch.cpu._is_avx512_bf16_supported():
        name = "_C_AVX512" if torch.cpu._is_avx512_supported() else "_C_AVX2"
    torch.ops.load_library(str(Path(found.submodule_search_locations[0], f"{name}.abi3.so")))
