"""What this machine's processor computes well."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CPUINFO = Path("/proc/cpuinfo")
_FP8_KV_FLAGS = frozenset({"avx512f", "amx_tile"})
"""What vLLM's attention on x86 needs, one of them, for a KV cache in fp8."""
_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "i8mm"})
"""As Linux names the instructions that multiply int8 and sum in int32 (x86 and ARM)."""


def computes_int8() -> bool:
    """Whether the processor has instructions for int8 products; without them they are slower than those in float32.

    Reads what Linux says and imports nothing heavy: it takes part in naming the files of a model.
    """
    return _has_one_of(_INT8_FLAGS)


def stores_fp8_kv() -> bool:
    """Whether vLLM's attention on this processor can read a KV cache in fp8: what tests ask before they start an engine.

    The engine itself has the last word.
    """
    return _has_one_of(_FP8_KV_FLAGS)


def _has_one_of(wanted: frozenset[str]) -> bool:
    for line in _CPUINFO.read_text(encoding="utf-8").splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return not wanted.isdisjoint(flags.split())
    return False


def computes_bfloat16() -> bool:
    """Whether matrix products in bfloat16 are at least as fast as those in float32.

    True from AVX-512 on (and on ARM with BF16); before that oneDNN has no such product, and what torch does instead was
    measured four to eight times slower than float32 (two cores with AVX2, products of 512 rows).
    """
    import torch

    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001  # the public flags name instructions, not products


def working_dtype() -> torch.dtype:
    """In which a bfloat16 model is run on this processor: bfloat16, or float32 where that is faster."""
    import torch

    return torch.bfloat16 if computes_bfloat16() else torch.float32
