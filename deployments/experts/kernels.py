"""How a pool computes its experts: what a kernel does, and the plain one that runs everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class ExpertKernel(Protocol):
    """Computes gated experts (SiLU)."""

    name: str
    alignment: int
    """The intermediate size has to be a multiple of it; weights are padded with zeros."""

    def pack(self, w13: torch.Tensor, w2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights in the form that `compute` takes, from w13 (n, 2 * intermediate, hidden), w2 (n, hidden, intermediate)."""

    def compute(
        self,
        out: torch.Tensor,
        x: torch.Tensor,
        packed: tuple[torch.Tensor, torch.Tensor],
        weights: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        """Write to `out` (rows, hidden) for each row of `x` the sum of its experts.

        `weights` (rows, k) float32 and `slots` (rows, k) int32 name the experts by their place in `packed`.
        """


class TorchKernel:
    """Plain torch, expert by expert, sums in float32."""

    name = "torch"
    alignment = 1

    def pack(self, w13: torch.Tensor, w2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return w13, w2

    def compute(
        self,
        out: torch.Tensor,
        x: torch.Tensor,
        packed: tuple[torch.Tensor, torch.Tensor],
        weights: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        import torch
        from torch.nn.functional import linear, silu

        w13, w2 = packed
        total = torch.zeros(out.shape, dtype=torch.float32)
        for slot in slots.unique().tolist():
            rows, places = (slots == slot).nonzero(as_tuple=True)
            gate, up = linear(x[rows], w13[slot]).chunk(2, dim=-1)
            done = linear(silu(gate) * up, w2[slot]).float()
            total.index_add_(0, rows, done * weights[rows, places, None])
        out.copy_(total)
