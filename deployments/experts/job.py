"""What a trunk's client keeps of the layer in work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cluster.experts.fallback import substitute
from deployments.experts.link import Link
from deployments.experts.routes import NOBODY, Numbers, Routes
from deployments.experts.step_use import StepUse


class PoolsUnreachableError(Exception):
    """No expert of a layer could be reached in time."""


@dataclass(slots=True)
class Sent:
    """A batch that a replica works on."""

    link: Link
    pool: str
    pairs: Numbers
    """Places in the flat list of rows and experts."""
    rows: Numbers
    """Of the layer, each once, in the order in which they were sent."""


@dataclass(slots=True)
class Job:
    """One layer of one step."""

    layer: int
    x: torch.Tensor
    raw: npt.NDArray[Any]
    """`x` as numbers that NumPy knows, of the same width."""
    weights: npt.NDArray[np.float32]
    """(rows, k), as `experts`."""
    experts: npt.NDArray[np.int32]
    logits: Callable[[], torch.Tensor]
    use: StepUse
    sent: list[Sent] = field(default_factory=list)
    failed: list[Numbers] = field(default_factory=list)
    total: npt.NDArray[np.float32] | None = None
    """Sum so far."""

    def stand_in(self, pairs: Numbers, routes: Routes) -> tuple[Numbers, int]:
        """Give rows that have pairs which nobody can compute other experts, with `cluster.experts.fallback`.

        Returns the pairs that are to be sent in place of `pairs`, and how many rows it were. Raises `PoolsUnreachableError`
        where nobody can compute any expert of the layer.
        """
        k = self.experts.shape[1]
        # Those of parked pools, too: nobody waits for these any more.
        rows = np.unique(pairs[routes.pools(self.layer, self.experts.reshape(-1)[pairs]) <= NOBODY] // k)
        if not len(rows):
            return pairs, 0
        self.experts, self.weights = self.experts.copy(), self.weights.copy()
        logits = self.logits().float()
        for row in rows.tolist():
            found = substitute(
                self.experts[row].tolist(),
                self.weights[row].tolist(),
                logits[row].tolist(),
                lambda expert: routes.reaches(self.layer, expert),
            )
            if found is None:
                raise PoolsUnreachableError(f"no expert of layer {self.layer} can be reached")
            # Fewer experts than before: the first one takes the free places, with no weight.
            free = k - len(found.experts)
            self.experts[row] = [*found.experts, *[found.experts[0]] * free]
            self.weights[row] = [*found.weights, *[0.0] * free]
            self.use.degraded[row] = self.use.degraded.get(row, 0) + 1
        if self.total is not None:
            # What was summed for them was weighted with experts that are gone.
            self.total[rows] = 0
        others = pairs[~np.isin(pairs // k, rows)]
        return np.sort(np.concatenate([others, (rows[:, None] * k + np.arange(k)).reshape(-1)])), len(rows)
