"""The experts that one pool process holds, and the computation of a batch of rows with them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch

from cluster.experts.pools import Holding, holding_to_json
from deployments.experts.kernels import ExpertKernel
from deployments.experts.source import ExpertSource
from deployments.experts.wire import PAIR_BYTES, Header, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(slots=True)
class _Layer:
    """Experts of one layer."""

    packed: tuple[torch.Tensor, torch.Tensor]
    slot_of: npt.NDArray[np.int32]
    """Expert to its place in `packed`; -1: not held."""
    experts: list[int]
    tokens: npt.NDArray[np.int64]
    """Rows computed, by place."""


class ExpertPool:
    """Some experts of a checkpoint, packed for a kernel. Raises `CheckpointError` for what the checkpoint lacks."""

    def __init__(
        self,
        checkpoint: ExpertSource,
        holds: Holding,
        dtype: str,
        kernel_for: Callable[[torch.dtype, int], ExpertKernel],
    ) -> None:
        checkpoint.require(holds)
        self.dtype = dtype
        self.hidden = checkpoint.shape.hidden
        self.holds = holds
        self.busy_s = 0.0
        self.batches = 0
        self._dtype = DTYPES[dtype]
        self._kernel = kernel_for(self._dtype, self.hidden)
        self.row_bytes = self.hidden * self._dtype.itemsize
        padded = -(-checkpoint.shape.intermediate // self._kernel.alignment) * self._kernel.alignment
        self._layers: dict[int, _Layer] = {}
        for layer, held in holds.items():
            experts = sorted(held)
            packed = self._kernel.pack(*checkpoint.read(layer, experts, self._dtype, padded))
            slot_of = np.full(checkpoint.experts, -1, dtype=np.int32)
            slot_of[experts] = np.arange(len(experts), dtype=np.int32)
            self._layers[layer] = _Layer(packed, slot_of, experts, np.zeros(len(experts), dtype=np.int64))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights, padding included."""
        return sum(t.nbytes for layer in self._layers.values() for t in layer.packed)

    @property
    def kernel(self) -> str:
        """Name of the kernel in use."""
        return self._kernel.name

    def body_bytes(self, header: Header) -> int:
        """How long the body of a REQUEST with this header has to be."""
        return header.rows * self.row_bytes + header.pairs * PAIR_BYTES

    @torch.inference_mode()
    def compute(self, header: Header, body: memoryview, out: memoryview) -> float:
        """Write the rows of the answer to `out`; returns seconds. Raises `ProtocolError` for what is not held or amiss."""
        begun = time.perf_counter()
        rows, pairs, layer = header.rows, header.pairs, self._layers.get(header.layer)
        if layer is None:
            raise ProtocolError(f"no expert of layer {header.layer} is held here")
        x = torch.frombuffer(body, dtype=self._dtype, count=rows * self.hidden).view(rows, self.hidden)
        y = torch.frombuffer(out, dtype=self._dtype, count=rows * self.hidden).view(rows, self.hidden)
        start = rows * self.row_bytes
        numbers = np.frombuffer(body, dtype="<i4", count=2 * pairs, offset=start)
        row_of, experts = numbers[:pairs], numbers[pairs:]
        weights = np.frombuffer(body, dtype="<f4", count=pairs, offset=start + 8 * pairs)
        if experts.min() < 0 or experts.max() >= len(layer.slot_of) or row_of.min() < 0 or row_of.max() >= rows:
            raise ProtocolError("rows or experts are out of range")
        slots = layer.slot_of[experts]
        if slots.min() < 0:
            missing = sorted(set(experts[slots < 0].tolist()))
            raise ProtocolError(f"experts {missing} of layer {header.layer} are not held here")
        self._run(x, y, layer.packed, row_of, slots, weights)
        layer.tokens += np.bincount(slots, minlength=len(layer.tokens))
        took = time.perf_counter() - begun
        self.busy_s += took
        self.batches += 1
        return took

    def _run(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        packed: tuple[torch.Tensor, torch.Tensor],
        row_of: npt.NDArray[np.int32],
        slots: npt.NDArray[np.int32],
        weights: npt.NDArray[np.float32],
    ) -> None:
        rows, pairs = len(x), len(row_of)
        each = pairs // rows
        if each * rows == pairs and (rows == 1 or _in_turn(row_of, rows, each)):
            # Every row has as many experts here: the kernel's own form.
            shape = rows, each
            self._kernel.compute(
                y, x, packed, torch.from_numpy(weights).view(shape), torch.from_numpy(slots).view(shape)
            )
            return
        order = torch.from_numpy(row_of)
        done = torch.empty(pairs, x.shape[1], dtype=x.dtype)
        shape = pairs, 1
        self._kernel.compute(
            done,
            x.index_select(0, order),
            packed,
            torch.from_numpy(weights).view(shape),
            torch.from_numpy(slots).view(shape),
        )
        # Summed in float32: the sum of rounded numbers is to be rounded once.
        y.copy_(torch.zeros(x.shape, dtype=torch.float32).index_add_(0, order, done.float()))

    def tokens(self) -> dict[str, dict[str, int]]:
        """Rows computed by layer and expert."""
        return {
            str(number): dict(zip(map(str, layer.experts), layer.tokens.tolist(), strict=True))
            for number, layer in self._layers.items()
        }

    def report(self) -> dict[str, Any]:
        """What it holds and did, as JSON has it: bytes, seconds, rows."""
        return {
            "kernel": self.kernel,
            "weight_bytes": self.weight_bytes,
            "holds": holding_to_json(self.holds),
            "tokens": self.tokens(),
            "busy_s": self.busy_s,
            "batches": self.batches,
        }


def _in_turn(row_of: npt.NDArray[np.int32], rows: int, each: int) -> bool:
    return bool((row_of.reshape(rows, each) == np.arange(rows, dtype=np.int32)[:, None]).all())
