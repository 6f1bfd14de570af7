"""What pools compute with vLLM's kernel, against what the kernel says of all experts at once, as in an engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from deployments.engines import vllm_expert_kernel
from deployments.engines.vllm_expert_kernel import VllmCpuKernel, expert_kernel
from deployments.engines.vllm_scratchpad import ScratchPad
from deployments.experts.kernels import ExpertKernel, Pairs, TorchKernel

HIDDEN, SIZE, EXPERTS, TOP_K = 96, 64, 6, 3


def a_layer(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    w13 = torch.randn(EXPERTS, 2 * SIZE, HIDDEN, generator=generator) * 0.1
    w2 = torch.randn(EXPERTS, HIDDEN, SIZE, generator=generator) * 0.1
    return w13.to(dtype), w2.to(dtype)


def routed(rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, HIDDEN, generator=generator).to(dtype)
    weights, experts = torch.softmax(torch.randn(rows, EXPERTS, generator=generator), -1).topk(TOP_K)
    return x, weights.contiguous(), experts.int()


def in_an_engine(kernel: VllmCpuKernel, x: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """vLLM's own way: one call for all experts, and a sum that is rounded once."""
    w13, w2 = (kernel._packed(one) for one in a_layer(x.dtype))
    out = torch.empty_like(x)
    torch.ops._C.cpu_fused_moe(out, x, w13, w2, None, None, weights, experts, False, "silu", kernel._isa)
    return out


def in_pools(kernel: ExpertKernel, x: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """Experts in two pools; the sum of what both say is rounded once."""
    total = torch.zeros(len(x), HIDDEN)
    whole13, whole2 = a_layer(x.dtype)
    for held in ([0, 2, 5], [1, 3, 4]):
        packed = kernel.pack(whole13[held].contiguous(), whole2[held].contiguous())
        pairs = sorted(
            (held.index(expert), row, place)
            for row, chosen in enumerate(experts.tolist())
            for place, expert in enumerate(chosen)
            if expert in held
        )
        if not pairs:
            continue
        slots, rows, places = (np.array(one, dtype=np.int32) for one in zip(*pairs, strict=True))
        # What stood there before must not matter.
        part = np.full((len(x), HIDDEN), 7.0, np.float32)
        kernel.compute(part, numbers(x), packed, Pairs(rows, slots, weights.numpy()[rows, places]))
        total += torch.from_numpy(part)
    return total


def numbers(x: torch.Tensor) -> npt.NDArray[Any]:
    return x.view(torch.int16).numpy() if x.itemsize == 2 else x.numpy()


@pytest.fixture(params=[torch.bfloat16, torch.float16, torch.float32])
def kernel(request: pytest.FixtureRequest) -> tuple[torch.dtype, VllmCpuKernel]:
    made = expert_kernel(request.param, HIDDEN)
    assert isinstance(made, VllmCpuKernel), "vLLM's operators are installed"
    return request.param, made


@pytest.mark.parametrize("rows", [1, 3, 40, 300])
def test_pools_and_engine_round_alike(kernel: tuple[torch.dtype, VllmCpuKernel], rows: int) -> None:
    dtype, computes = kernel
    given = routed(rows, dtype)
    for _ in range(2):
        # The second time in memory that was used before.
        told, known = in_pools(computes, *given), in_an_engine(computes, *given)
        torch.testing.assert_close(told, known.float(), rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-5)
        if dtype != torch.float32 and rounds_to_the_nearest(computes, *given):
            # To the bit, but for sums that lie where the order of adding decides.
            assert (told.to(dtype) == known).float().mean() > 0.999


def rounds_to_the_nearest(kernel: VllmCpuKernel, x: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor) -> bool:
    """Where AVX-512 has no instruction for bfloat16 vLLM cuts off what torch rounds."""
    packed = kernel.pack(*a_layer(x.dtype))
    rows = np.arange(len(x), dtype=np.int32)
    first = Pairs(rows, np.zeros_like(rows), np.ones(len(x), np.float32))
    given, sums = kernel.each(numbers(x), packed, first)
    return sums is not None and torch.equal(torch.from_numpy(sums).to(x.dtype), given)


def test_many_pairs_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    computes = expert_kernel(torch.bfloat16, HIDDEN)
    given = routed(100, torch.bfloat16)
    whole = in_pools(computes, *given)
    monkeypatch.setattr(vllm_expert_kernel, "MOST_BYTES", 17 * (4 * HIDDEN + 2 * SIZE))
    torch.testing.assert_close(in_pools(computes, *given), whole, rtol=1e-5, atol=1e-6)


def test_without_the_sums_parts_are_rounded_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        ScratchPad, "sums", lambda _pad, _experts, pairs, _size, hidden: np.zeros((pairs, hidden), np.float32)
    )
    made = expert_kernel(torch.bfloat16, HIDDEN)
    assert "pools round each part of a sum" in caplog.text
    given = routed(40, torch.bfloat16)
    assert isinstance(made, VllmCpuKernel)
    known = in_an_engine(made, *given).float()
    torch.testing.assert_close(in_pools(made, *given), known, rtol=3e-2, atol=3e-2)


def test_plain_torch_says_the_same() -> None:
    given = routed(40, torch.bfloat16)
    told = in_pools(TorchKernel(torch.bfloat16), *given)
    computes = expert_kernel(torch.bfloat16, HIDDEN)
    assert isinstance(computes, VllmCpuKernel)
    torch.testing.assert_close(told, in_an_engine(computes, *given).float(), rtol=1e-2, atol=2e-3)
