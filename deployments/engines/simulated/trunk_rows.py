"""The rows that a simulated trunk sends to pools: made-up numbers, the same for the same tokens, with the routes of its router."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cluster.config.engine import SimulatedExperts
from deployments.engines.simulated.core import Step
from deployments.engines.simulated.routing import Router, fitting_id

MAX_ROWS: Final = 256
"""Rows of one step; of longer prompts some tokens are sent, evenly spread. Decoding sequences and short ones have one row at least."""

_NUMBERS: Final = 4093
"""Rows of made-up numbers that all token ids share."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one step: those of a request follow each other."""

    requests: list[str]
    starts: list[int]
    """The first row of each request, then the end of the last one."""
    tokens: list[tuple[Router, list[int]]]
    """Of all rows in turn, and the router that tells their experts."""

    def experts(self, experts: int) -> npt.NDArray[np.int32]:
        """(layers, rows, top-k), for so many experts in each layer."""
        routed = [part for router, tokens in self.tokens for part in router.routes(tokens)]
        return np.ascontiguousarray((np.concatenate(routed) % experts).swapaxes(0, 1), np.int32)

    def ids(self) -> npt.NDArray[np.int64]:
        """Token ids, (rows,)."""
        return np.array([fitting_id(token) for _, tokens in self.tokens for token in tokens], np.int64)


def batch_of(step: Step, owner_of: Callable[[str], tuple[str, Router] | None]) -> Batch:
    """The rows of a step: one for each token up to `MAX_ROWS`. Prompts share what decoding sequences leave of it.

    `owner_of` tells of the key of a sequence the request that it belongs to, and its router; None: nobody's any more.
    """
    decoding = sum(1 for sequence, _ in step.work if sequence.decoding)
    share = max(1, (MAX_ROWS - decoding) // max(1, len(step.work) - decoding))
    by_router: dict[Router, dict[str, list[int]]] = {}
    for sequence, count in step.work:
        owner = owner_of(sequence.key)
        if owner is None:
            continue
        tokens = sequence.tokens[sequence.computed : sequence.computed + count]
        if len(tokens) > share:
            tokens = [tokens[place * len(tokens) // share] for place in range(share)]
        request, router = owner
        by_router.setdefault(router, {}).setdefault(request, []).extend(tokens)
    batch = Batch([], [0], [])
    for router, by_request in by_router.items():
        for request, tokens in by_request.items():
            batch.requests.append(request)
            batch.starts.append(batch.starts[-1] + len(tokens))
        batch.tokens.append((router, [token for tokens in by_request.values() for token in tokens]))
    return batch


class Inputs:
    """Made-up hidden states, weights and scores; they follow from the seed, the layer and the tokens."""

    def __init__(self, config: SimulatedExperts, hidden: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self._experts, self._seed = config.experts, seed
        self._x = generator.standard_normal((_NUMBERS, hidden), np.float32)
        weights = generator.random((_NUMBERS, config.top_k), np.float32) + np.float32(0.1)
        self._weights = weights / weights.sum(axis=1, keepdims=True)

    def of(self, layer: int, ids: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Hidden states (rows, hidden), and weights of the experts (rows, top-k), which add up to 1."""
        places = (ids + 31 * layer) % _NUMBERS
        return self._x[places], self._weights[places]

    def scores(self, layer: int, experts: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The router's scores (rows, experts of the layer): the chosen `experts` (rows, top-k) are ahead of all others."""
        drawn = np.random.default_rng([self._seed, layer]).random((len(experts), self._experts), np.float32)
        np.put_along_axis(drawn, experts.astype(np.int64), np.float32(2), axis=1)
        return drawn


def differs(got: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> bool:
    """Whether a sum differs from what it should be by more than the order of adding it up explains."""
    return not np.allclose(got, expected, rtol=1e-3, atol=1e-4)
