"""Made-up experts for simulated models: small, the same in every process, and told from real ones by their fingerprint."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from cluster.config.engine import SimulatedExperts
from cluster.experts.pools import Holding
from deployments.experts.weights import CheckpointError, ExpertShape

if TYPE_CHECKING:
    import torch

DTYPE: Final = "float32"
"""Number format of simulated trunks and pools: sums differ by rounding alone, so a wrong one shows."""

_KEPT: Final = 8192
"""Experts whose weights are kept after `answer` made them."""

_Floats = npt.NDArray[np.float32]


class SyntheticCheckpoint:
    """An `ExpertSource` whose weights follow from the seed, the layer and the expert. There is nothing on disk."""

    def __init__(self, layers: int, experts: int, hidden: int = 16, intermediate: int = 8, seed: int = 0) -> None:
        self._layers, self._experts, self._seed = layers, experts, seed
        self._shape = ExpertShape(hidden, intermediate)
        self._known = functools.lru_cache(_KEPT)(self._make)

    @property
    def layers(self) -> list[int]:
        """Layers with routed experts: all, from 0."""
        return list(range(self._layers))

    @property
    def experts(self) -> int:
        """Routed experts of a layer."""
        return self._experts

    @property
    def shape(self) -> ExpertShape:
        """Sizes of every expert."""
        return self._shape

    def fingerprint(self) -> str:
        """Says that it is simulated, and of what."""
        sizes = self._layers, self._experts, self._shape.hidden, self._shape.intermediate
        return f"simulated:{'x'.join(map(str, sizes))}:{self._seed}"

    def require(self, holds: Holding) -> None:
        """Raises `CheckpointError` for experts that the model does not have."""
        for layer, experts in holds.items():
            for expert in experts:
                if not (0 <= layer < self._layers and 0 <= expert < self._experts):
                    raise CheckpointError(f"the simulated model has no expert {expert} in layer {layer}")

    def read(
        self, layer: int, experts: list[int], dtype: torch.dtype, padded: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights of some experts of a layer; see `ExpertSource.read`."""
        import torch

        self.require({layer: frozenset(experts)})
        hidden, size = self._shape.hidden, self._shape.intermediate
        w13 = torch.zeros(len(experts), 2 * padded, hidden, dtype=dtype)
        w2 = torch.zeros(len(experts), hidden, padded, dtype=dtype)
        for place, expert in enumerate(experts):
            first, second = self._make(layer, expert)
            w13[place, :size] = torch.from_numpy(first[:size])
            w13[place, padded : padded + size] = torch.from_numpy(first[size:])
            w2[place, :, :size] = torch.from_numpy(second)
        return w13, w2

    def answer(self, layer: int, x: _Floats, experts: npt.NDArray[Any], weights: _Floats) -> _Floats:
        """What the `experts` (k,) of a layer say of the row `x` (hidden,), with `weights` (k,): (hidden,)."""
        made = [self._known(layer, int(expert)) for expert in experts]
        gate_up = np.stack([first for first, _ in made]) @ x
        gate, up = np.split(gate_up, 2, axis=1)
        inner = gate / (1 + np.exp(-gate)) * up
        each = np.einsum("khi,ki->kh", np.stack([second for _, second in made]), inner)
        return np.asarray(weights @ each, np.float32)

    def _make(self, layer: int, expert: int) -> tuple[_Floats, _Floats]:
        """w13 (2 * intermediate, hidden), w2 (hidden, intermediate); answers are about as large as what is asked."""
        hidden, size = self._shape.hidden, self._shape.intermediate
        drawn = np.random.default_rng([self._seed, layer, expert]).random(3 * hidden * size, np.float32) * 2 - 1
        first = drawn[: 2 * hidden * size].reshape(2 * size, hidden) * np.float32((3 / hidden) ** 0.5)
        second = drawn[2 * hidden * size :].reshape(hidden, size) * np.float32(3 / size**0.5)
        return first, second


def simulated_checkpoint(config: SimulatedExperts, seed: int) -> SyntheticCheckpoint:
    """The experts of a simulated model; `config` and `seed` are those of `engine.simulated`."""
    return SyntheticCheckpoint(config.layers, config.experts, seed=seed)
