"""What pools compute with vLLM's kernel, against what the kernel says of all experts at once, as in an engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deployments.engines.vllm_expert_kernel import VllmCpuKernel, expert_kernel
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
        numbers = x.view(torch.int16).numpy() if x.dtype == torch.bfloat16 else x.numpy()
        kernel.compute(part, numbers, packed, Pairs(rows, slots, weights.numpy()[rows, places]))
        total += torch.from_numpy(part)
    return total


@pytest.fixture(params=[torch.bfloat16, torch.float32])
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
        if dtype != torch.float32:
            # To the bit, but for sums that lie where the order of adding decides.
            assert (told.to(dtype) == known).float().mean() > 0.999


def test_plain_torch_says_the_same() -> None:
    given = routed(40, torch.bfloat16)
    told = in_pools(TorchKernel(torch.bfloat16), *given)
    computes = expert_kernel(torch.bfloat16, HIDDEN)
    assert isinstance(computes, VllmCpuKernel)
    torch.testing.assert_close(told, in_an_engine(computes, *given).float(), rtol=2e-2, atol=2e-2)
