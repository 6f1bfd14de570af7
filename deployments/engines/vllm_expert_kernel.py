"""vLLM's CPU kernel for experts, in a process that has no engine.

Its library of operators is loaded by its path: importing vLLM itself takes six seconds and half a gigabyte.
"""

from __future__ import annotations

import importlib.util
import logging
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from deployments.engines.vllm_scratchpad import ScratchPad
from deployments.experts.kernels import ExpertKernel, Packed, Pairs, Rows, Sums, TorchKernel

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

MOST_BYTES: Final = 256 * 2**20
"""Of what the kernel holds for the pairs of one call; it counts in 32 bits, and wraps beyond 2 GiB."""
HALF: Final = 2
"""Bytes of a number that NumPy does not know, or not as torch does."""
KEPT: Final = 128
"""Views of batches of up to so many pairs are kept: to make them anew takes longer than to use them."""
SAMPLE_EXPERTS: Final = 3
SAMPLE_ROWS: Final = (1, 5, 70)
ALIGNMENT: Final = 32
"""What vLLM's kernels ask of the hidden and the intermediate size, on every processor that is named here."""


class VllmCpuKernel:
    """`cpu_fused_moe` on weights packed in advance: what an engine on this processor computes its experts with.

    In 16 bits it rounds each sum that it gives out; `pad` has them before that.
    """

    alignment = ALIGNMENT

    def __init__(self, dtype: torch.dtype, hidden: int, pad: ScratchPad | None = None) -> None:
        self._isa = _isa(dtype)
        self._pad = pad
        self._hidden, self._dtype = hidden, dtype
        self.name = f"vllm {self._isa}"
        self._memory = _Batch.of(1, hidden, dtype)
        self._batches: dict[int, _Batch] = {}

    def pack(self, w13: torch.Tensor, w2: torch.Tensor) -> Packed:
        return self._packed(w13), self._packed(w2)

    def _packed(self, weight: torch.Tensor) -> torch.Tensor:
        import torch

        packed = torch.empty_like(weight)
        torch.ops._C.prepack_moe_weight(weight, packed, self._isa)
        return packed

    def compute(self, out: Sums, x: Rows, packed: Packed, pairs: Pairs) -> None:
        _, hidden, size = packed[1].shape
        most = max(1, MOST_BYTES // (4 * hidden + 2 * size))
        if len(pairs.rows) <= most:
            self._add_up(out, x, packed, pairs)
            return
        out.fill(0)
        part = np.empty_like(out)
        for first in range(0, len(pairs.rows), most):
            self._add_up(part, x, packed, pairs.some(first, first + most))
            out += part

    def _add_up(self, out: Sums, x: Rows, packed: Packed, pairs: Pairs) -> None:
        given, sums = self.each(x, packed, pairs)
        pairs.add_up(out, given.float().numpy() if sums is None else sums)

    def each(self, x: Rows, packed: Packed, pairs: Pairs) -> tuple[torch.Tensor, Sums | None]:
        """For each pair (pairs, hidden) what its expert says of its row: as the kernel gives it out, and before it was rounded.

        Weights do not count. Good until the next call. Raises what `ScratchPad.sums` raises.
        """
        import torch

        count = len(pairs.rows)
        batch = self._batches.get(count) or self._batch(count)
        np.take(x, pairs.rows, axis=0, out=batch.rows_as_numbers, mode="clip")
        batch.slots_as_numbers[:, 0] = pairs.slots
        torch.ops._C.cpu_fused_moe(
            batch.given, batch.rows, *packed, None, None, batch.ones, batch.slots, False, "silu", self._isa
        )
        experts, hidden, size = packed[1].shape
        return batch.given, None if self._pad is None else self._pad.sums(experts, count, size, hidden)

    def _batch(self, count: int) -> _Batch:
        """Memory for so many pairs; all batches share it."""
        if count > len(self._memory.rows):
            self._batches.clear()
            self._memory = _Batch.of(2 * count, self._hidden, self._dtype)
        batch = self._memory.first(count)
        if count <= KEPT:
            self._batches[count] = batch
        return batch


@dataclass(slots=True)
class _Batch:
    """What the kernel is called with for so many pairs, each a row with one expert of weight 1."""

    rows: torch.Tensor
    given: torch.Tensor
    ones: torch.Tensor
    slots: torch.Tensor
    rows_as_numbers: Rows = field(init=False)
    slots_as_numbers: npt.NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        import torch

        self.rows_as_numbers = self.rows.view(torch.int16 if self.rows.itemsize == HALF else self.rows.dtype).numpy()
        self.slots_as_numbers = self.slots.numpy()

    @classmethod
    def of(cls, count: int, hidden: int, dtype: torch.dtype) -> _Batch:
        """Memory for so many pairs."""
        import torch

        rows, slots = torch.zeros(count, hidden, dtype=dtype), torch.zeros(count, 1, dtype=torch.int32)
        return cls(rows, torch.zeros_like(rows), torch.ones(count, 1), slots)

    def first(self, count: int) -> _Batch:
        """The first of them, in the same memory."""
        return _Batch(self.rows[:count], self.given[:count], self.ones[:count], self.slots[:count])


def expert_kernel(dtype: torch.dtype, hidden: int) -> ExpertKernel:
    """The best kernel for this processor, number format and hidden size; the log says why it is another one than vLLM's."""
    import torch

    if hidden % ALIGNMENT:
        _log.warning("experts are computed in plain torch: the hidden size %d is no multiple of %d", hidden, ALIGNMENT)
        return TorchKernel(dtype)
    try:
        library = _load_operators()
    except (OSError, LookupError) as error:
        _log.warning("experts are computed in plain torch: vLLM's operators cannot be loaded (%s)", error)
        return TorchKernel(dtype)
    try:
        # Whether the library has the kernel for this number format is told by calling it.
        if dtype == torch.float32:
            _try(VllmCpuKernel(dtype, hidden), dtype, hidden)
            return VllmCpuKernel(dtype, hidden)
        return _unrounded(dtype, hidden, library)
    except (RuntimeError, AttributeError) as error:
        _log.warning("experts are computed in plain torch: vLLM's kernel refuses %s (%s)", dtype, error)
        return TorchKernel(dtype)


def _unrounded(dtype: torch.dtype, hidden: int, library: str) -> VllmCpuKernel:
    """With sums that are not rounded, if they are where they should be."""
    plain = VllmCpuKernel(dtype, hidden)
    _try(plain, dtype, hidden)
    try:
        kernel = VllmCpuKernel(dtype, hidden, ScratchPad(library))
        if all(_try(kernel, dtype, hidden) for _ in range(2)):
            return kernel
        why = "it has something else there"
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        why = str(error)
    _log.warning("pools round each part of a sum, so answers differ from an engine's: %s", why)
    return plain


def _try(kernel: VllmCpuKernel, dtype: torch.dtype, hidden: int) -> bool:
    """Whether sums, rounded, are what the kernel gives out, for batches of several sizes."""
    import torch

    generator = torch.Generator().manual_seed(0)
    w13 = torch.randn(SAMPLE_EXPERTS, 2 * ALIGNMENT, hidden, generator=generator) / hidden**0.5
    w2 = torch.randn(SAMPLE_EXPERTS, hidden, ALIGNMENT, generator=generator) / ALIGNMENT**0.5
    packed = kernel.pack(w13.to(dtype), w2.to(dtype))
    same = True
    for count in SAMPLE_ROWS:
        x = torch.randn(count, hidden, generator=generator).to(dtype)
        slots = torch.randint(0, SAMPLE_EXPERTS, (count,), generator=generator).sort().values.int().numpy()
        pairs = Pairs(np.arange(count, dtype=np.int32), slots, np.ones(count, np.float32))
        given, sums = kernel.each(x.view(torch.int16 if dtype.itemsize == HALF else dtype).numpy(), packed, pairs)
        same = same and sums is not None and _rounds_to(torch.from_numpy(sums), given)
    return same


def _rounds_to(sums: torch.Tensor, given: torch.Tensor) -> bool:
    """Whether `given` is `sums`, rounded: to the nearest number, or towards 0 as vLLM does where AVX-512 has no bfloat16."""
    import torch

    return bool(torch.isclose(given.float(), sums, rtol=torch.finfo(given.dtype).eps, atol=0).all())


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


def _load_operators() -> str:
    """Load the build of vLLM's operators that vLLM itself would choose (its `platforms/cpu.py`); returns its path."""
    import torch

    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        raise LookupError("vLLM is not installed")
    name = "_C"
    if platform.machine() == "x86_64" and not torch.cpu._is_avx512_bf16_supported():
        name = "_C_AVX512" if torch.cpu._is_avx512_supported() else "_C_AVX2"
    path = str(Path(found.submodule_search_locations[0], f"{name}.abi3.so"))
    if not hasattr(torch.ops._C, "cpu_fused_moe"):
        torch.ops.load_library(path)
    return path
