"""What the built models are made with. `docs/models.md` shows the sweeps that chose these values."""

from __future__ import annotations

from dataclasses import dataclass

from deployments.processor import computes_int8


@dataclass(frozen=True)
class SparseParameters:
    """How the dense model is turned into a mixture of experts."""

    experts: int = 4
    shared_neurons: int = 1024
    """Neurons of each FFN, of 1,536, that every token uses."""
    expert_neurons: int = 192
    """Neurons of each expert; a token uses two experts."""
    tokens: tuple[int, int, int] = (8192, 8192, 2048)
    """Tokens of prose, code and data to fit on; conversations come on top."""
    correction: float = 0.5
    """Share of the error made by earlier layers that a layer is fitted to undo, 0 to 1."""
    ridge: float = 3e-3
    """Strength of the pull towards the dense weights."""
    router_scale: float = 0.5
    """Spread of the router's scores: small values weigh both experts nearly alike."""
    router_rounds: int = 0
    """How often routers and experts are fitted to each other after the first clustering."""
    seed: int = 0


@dataclass(frozen=True)
class MiniParameters:
    """How the dense model is made smaller and faster."""

    int8: bool = True
    """Whether weights and activations are int8; False leaves them bfloat16."""
    removed_layers: int = 0
    """Layers of 30 that are replaced."""
    longest_run: int = 1
    tokens: tuple[int, int, int] = (8192, 8192, 2048)
    correction: float = 0.5
    ridge: float = 3e-3


SPARSE = SparseParameters()
# int8 is what makes the mini model fast, but only where the processor has instructions for it: elsewhere it was measured
# at 0.3 to 0.6 of the dense model's speed, and layers go instead.
MINI = MiniParameters() if computes_int8() else MiniParameters(int8=False, removed_layers=2)
