"""How a pool computes its experts: what a kernel does, and the plain one that runs everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

Packed = tuple["torch.Tensor", "torch.Tensor"]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of row and expert, n of them (at least 1), sorted by expert."""

    rows: torch.Tensor
    """(n,) int32."""
    slots: torch.Tensor
    """(n,) int32, ascending: each pair's expert, by its place in what `ExpertKernel.pack` was given."""
    weights: torch.Tensor
    """(n, 1) float32."""


class ExpertKernel(Protocol):
    """Computes gated experts (SiLU)."""

    name: str
    alignment: int
    """The intermediate size has to be a multiple of it; weights are padded with zeros."""

    def pack(self, w13: torch.Tensor, w2: torch.Tensor) -> Packed:
        """Weights in the form that `compute` takes, from w13 (n, 2 * intermediate, hidden), w2 (n, hidden, intermediate)."""

    def compute(self, out: torch.Tensor, x: torch.Tensor, packed: Packed, pairs: Pairs) -> None:
        """Write to `out` (rows, hidden) float32 for each row of `x` the weighted sum of its experts.

        What is rounded to the format of `x` on the way is what an engine rounds, and no more: the sum is not.
        """


class TorchKernel:
    """Plain torch, expert by expert."""

    name = "torch"
    alignment = 1

    def pack(self, w13: torch.Tensor, w2: torch.Tensor) -> Packed:
        return w13, w2

    def compute(self, out: torch.Tensor, x: torch.Tensor, packed: Packed, pairs: Pairs) -> None:
        from torch.nn.functional import linear, silu

        w13, w2 = packed
        out.zero_()
        for slot in pairs.slots.unique().tolist():
            chosen = pairs.slots == slot
            rows = pairs.rows[chosen]
            gate, up = linear(x[rows], w13[slot]).float().chunk(2, dim=-1)
            inner = (silu(gate) * up).to(x.dtype)
            out.index_add_(0, rows, linear(inner.float(), w2[slot].float()) * pairs.weights[chosen])
