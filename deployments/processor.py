"""What this machine's processor computes well."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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
