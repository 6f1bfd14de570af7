"""How a pool computes its experts: what a kernel does, and the plain one that runs everywhere.

Numbers come and go as NumPy's: in a process that has just waited each call of torch costs more than what it does for a few rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Packed = tuple["torch.Tensor", "torch.Tensor"]
Sums = npt.NDArray[np.float32]
Rows = npt.NDArray[Any]
"""(rows, hidden) float32, or numbers of 16 bits as int16, which NumPy takes them for."""
DENSE: Final = 32
"""Up to so many pairs one product with a matrix of weights is the quickest way to add them up."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of row and expert, n of them (at least 1), sorted by expert."""

    rows: npt.NDArray[np.int32]
    """(n,)."""
    slots: npt.NDArray[np.int32]
    """(n,), ascending: each pair's expert, by its place in what `ExpertKernel.pack` was given."""
    weights: npt.NDArray[np.float32]
    """(n,)."""

    def some(self, first: int, end: int) -> Pairs:
        """Those between two places."""
        return Pairs(self.rows[first:end], self.slots[first:end], self.weights[first:end])

    def add_up(self, out: Sums, parts: Sums) -> None:
        """Write to each row of `out` the weighted sum of its pairs' `parts` (n, hidden), which may be changed."""
        count = len(self.rows)
        if count <= DENSE:
            matrix = np.zeros((len(out), count), np.float32)
            matrix[self.rows, np.arange(count)] = self.weights
            # Zero times infinity is none: rows that have such numbers must not spoil others.
            with np.errstate(invalid="ignore", over="ignore"):
                if np.isfinite(np.dot(matrix, parts, out=out).sum()):
                    return
        import torch

        parts *= self.weights[:, None]
        torch.from_numpy(out).zero_().index_add_(0, torch.from_numpy(self.rows), torch.from_numpy(parts))


class ExpertKernel(Protocol):
    """Computes gated experts (SiLU)."""

    name: str
    alignment: int
    """The intermediate size has to be a multiple of it; weights are padded with zeros."""

    def pack(self, w13: torch.Tensor, w2: torch.Tensor) -> Packed:
        """Weights in the form that `compute` takes, from w13 (n, 2 * intermediate, hidden), w2 (n, hidden, intermediate)."""

    def compute(self, out: Sums, x: Rows, packed: Packed, pairs: Pairs) -> None:
        """Write to `out` (rows, hidden) for each row of `x` the weighted sum of its experts.

        What is rounded to the format of `x` on the way is what an engine rounds, and no more: the sum is not.
        """


class TorchKernel:
    """Plain torch, expert by expert."""

    name = "torch"
    alignment = 1

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def pack(self, w13: torch.Tensor, w2: torch.Tensor) -> Packed:
        return w13, w2

    def compute(self, out: Sums, x: Rows, packed: Packed, pairs: Pairs) -> None:
        import torch
        from torch.nn.functional import linear, silu

        w13, w2 = packed
        whole = torch.from_numpy(x[pairs.rows]).view(self._dtype)
        slots = torch.from_numpy(pairs.slots)
        parts = torch.empty(len(pairs.rows), out.shape[1])
        for slot in slots.unique().tolist():
            chosen = slots == slot
            gate, up = linear(whole[chosen].float(), w13[slot].float()).chunk(2, dim=-1)
            inner = (silu(gate) * up).to(self._dtype)
            parts[chosen] = linear(inner.float(), w2[slot].float())
        pairs.add_up(out, parts.numpy())
