"""Where a pool gets the weights of its experts from: a checkpoint on disk, or made-up ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from cluster.experts.pools import Holding
    from deployments.experts.weights import ExpertShape


class ExpertSource(Protocol):
    """The routed experts of one model."""

    @property
    def layers(self) -> list[int]:
        """Layers with routed experts."""

    @property
    def experts(self) -> int:
        """Routed experts of a layer."""

    @property
    def shape(self) -> ExpertShape:
        """Sizes of an expert."""

    def fingerprint(self) -> str:
        """Tells models apart; trunk and pools have to agree on it."""

    def require(self, holds: Holding) -> None:
        """Raises `CheckpointError` for experts that it does not have."""

    def read(
        self, layer: int, experts: list[int], dtype: torch.dtype, padded: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights of some experts of a layer, in the order given: w13 (n, 2 * padded, hidden), w2 (n, hidden, padded).

        `padded` is at least the intermediate size; what is beyond it is zero. Raises `CheckpointError`.
        """
