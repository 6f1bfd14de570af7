"""The experts that one pool process holds, and the computation of a batch of rows with them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch

from cluster.experts.pools import Holding, holding_to_json
from deployments.experts.kernels import ExpertKernel, Packed, Pairs
from deployments.experts.source import ExpertSource
from deployments.experts.wire import MAX_ROWS, PAIR_BYTES, SUM_BYTES, Header, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_REPLY_BYTES: Final = 2**30
DTYPES: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class _Layer:
    """Experts of one layer."""

    packed: Packed
    slot_of: npt.NDArray[np.int32]
    """Expert to its place in `packed`; -1: not held."""
    held: frozenset[int]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Another holding, read and packed; `ExpertPool.adopt` puts it in force."""

    holds: Holding
    layers: dict[int, _Layer]


class ExpertPool:
    """Some experts of a checkpoint, packed for a kernel. Raises `CheckpointError` for what the checkpoint lacks."""

    def __init__(
        self,
        checkpoint: ExpertSource,
        holds: Holding,
        dtype: str,
        kernel_for: Callable[[torch.dtype, int], ExpertKernel],
    ) -> None:
        self.dtype = dtype
        self.hidden = checkpoint.shape.hidden
        self.busy_s = 0.0
        self.batches = 0
        self._checkpoint = checkpoint
        self._dtype = DTYPES[dtype]
        self._number = np.dtype(np.float32 if dtype == "float32" else np.int16)
        self._kernel = kernel_for(self._dtype, self.hidden)
        self._padded = -(-checkpoint.shape.intermediate // self._kernel.alignment) * self._kernel.alignment
        self._tokens: dict[int, npt.NDArray[np.float64]] = {}
        """Rows computed, by layer and expert."""
        self.holds: Holding = {}
        self._layers: dict[int, _Layer] = {}
        self.adopt(self.prepare(holds))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights, padding included."""
        return sum(t.nbytes for layer in self._layers.values() for t in layer.packed)

    @property
    def kernel(self) -> str:
        """Name of the kernel in use."""
        return self._kernel.name

    def prepare(self, holds: Holding) -> Prepared:
        """Read what another holding needs, layers that stay as they are excepted: seconds, on any thread.

        Raises what the checkpoint raises for experts that it lacks.
        """
        self._checkpoint.require(holds)
        before, layers = self._layers, {}
        for number, held in holds.items():
            known = before.get(number)
            layers[number] = known if known is not None and known.held == held else self._read(number, held)
        return Prepared(dict(holds), layers)

    def _read(self, number: int, held: frozenset[int]) -> _Layer:
        experts = sorted(held)
        packed = self._kernel.pack(*self._checkpoint.read(number, experts, self._dtype, self._padded))
        slot_of = np.full(self._checkpoint.experts, -1, dtype=np.int32)
        slot_of[experts] = np.arange(len(experts), dtype=np.int32)
        return _Layer(packed, slot_of, frozenset(held))

    def adopt(self, prepared: Prepared) -> None:
        """Hold what was prepared from now on; between two batches."""
        for number in prepared.layers:
            self._tokens.setdefault(number, np.zeros(self._checkpoint.experts))
        self._layers, self.holds = prepared.layers, prepared.holds

    def require(self, header: Header) -> None:
        """Raises `ProtocolError` for a REQUEST that cannot be one, by its header."""
        rows, pairs = header.rows, header.pairs
        # A row has each expert once at most.
        if not (0 < rows <= MAX_ROWS and rows <= pairs <= rows * self._checkpoint.experts):
            raise ProtocolError(f"{rows} rows with {pairs} pairs are more or fewer than are taken")
        if self.reply_bytes(header) > MAX_REPLY_BYTES:
            raise ProtocolError(f"the answer for {rows} rows would be longer than {MAX_REPLY_BYTES} bytes")
        if header.body != rows * self.hidden * self._dtype.itemsize + pairs * PAIR_BYTES:
            raise ProtocolError("the body is not as long as its rows and pairs are")

    def reply_bytes(self, header: Header) -> int:
        """How long the body of the answer is."""
        return header.rows * self.hidden * SUM_BYTES

    def compute(self, header: Header, body: memoryview, out: memoryview) -> float:
        """Write the rows of the answer to `out`; returns seconds. Raises `ProtocolError` for what is not held or amiss.

        Few calls: what they do is less than what it takes to make them, and a trunk waits.
        """
        begun = time.perf_counter()
        rows, count, layer = header.rows, header.pairs, self._layers.get(header.layer)
        if layer is None:
            raise ProtocolError(f"no expert of layer {header.layer} is held here")
        numbers = np.frombuffer(body, dtype="<i4", count=2 * count).reshape(2, count)
        # As numbers without a sign, negative ones are out of range, too.
        rows_of, experts = numbers.view("<u4")
        if rows_of.max() >= rows or experts.max() >= len(layer.slot_of):
            raise ProtocolError("rows or experts are out of range")
        slots = layer.slot_of[experts]
        if slots.min() < 0:
            missing = sorted(set(experts[slots < 0].tolist()))
            raise ProtocolError(f"experts {missing} of layer {header.layer} are not held here")
        if (slots[1:] < slots[:-1]).any():
            raise ProtocolError("pairs are not sorted by expert")
        x = np.frombuffer(body, self._number, rows * self.hidden, PAIR_BYTES * count)
        self._kernel.compute(
            np.frombuffer(out, np.float32, rows * self.hidden).reshape(rows, self.hidden),
            x.reshape(rows, self.hidden),
            layer.packed,
            Pairs(numbers[0], slots, np.frombuffer(body, "<f4", count, 8 * count)),
        )
        took = time.perf_counter() - begun
        self.busy_s += took
        self.batches += 1
        return took

    def count(self, header: Header, body: memoryview) -> int:
        """Take a request that was computed into the count; returns its pairs of row and expert."""
        experts = np.frombuffer(body, dtype="<i4", count=header.pairs, offset=4 * header.pairs)
        weights = np.frombuffer(body, dtype="<f4", count=header.pairs, offset=8 * header.pairs)
        # Where fewer experts than usual stand in for others, the places that are left have no weight.
        counts = np.bincount(experts, weights != 0, self._checkpoint.experts)
        self._tokens[header.layer] += counts
        return int(counts.sum())

    @property
    def pairs(self) -> int:
        """Pairs of row and expert that were computed since the start."""
        return int(sum(counts.sum() for counts in list(self._tokens.values())))

    def tokens(self) -> dict[str, dict[str, int]]:
        """Rows computed by layer and expert since the start, of all experts that are held, or were used."""
        told = {}
        for number, counts in list(self._tokens.items()):
            layer = self._layers.get(number)
            experts = sorted((layer.held if layer else frozenset()).union(counts.nonzero()[0].tolist()))
            told[str(number)] = {str(expert): int(counts[expert]) for expert in experts}
        return told

    def report(self) -> dict[str, Any]:
        """What it holds and did, as JSON has it: bytes, seconds, rows, pairs of row and expert."""
        return {
            "kernel": self.kernel,
            "weight_bytes": self.weight_bytes,
            "holds": holding_to_json(self.holds),
            "tokens": self.tokens(),
            "busy_s": self.busy_s,
            "batches": self.batches,
            "pairs": self.pairs,
        }
