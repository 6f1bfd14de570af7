"""How many tokens went to which expert: of an engine since its start, and of one request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
"""Tokens by layer and expert, (layers, experts): each token counts once for each of its top-k experts."""

TOP_NAMED: Final = 8
"""Experts of a request that are named in its summary."""


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """What a sparse model has of experts. Layers are those that have some, numbered from 0 in the model's order."""

    layers: int
    experts: int
    """In each layer."""
    top_k: int
    """Experts that a token goes to, in each layer."""

    def zeros(self) -> Counts:
        """No token anywhere."""
        return np.zeros((self.layers, self.experts), np.int64)


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """Tokens by layer and expert since the engine's start."""

    shape: ExpertShape
    total: bytes
    """As the engine computed them; see `packed`."""
    by_traffic: dict[str, bytes] = field(default_factory=dict)
    """Of requests that ended, by the kind of traffic they were told to be; see `packed`."""

    def counts(self) -> Counts:
        """All of it, (layers, experts)."""
        return unpacked(self.total, self.shape)

    def traffic(self) -> dict[str, Counts]:
        """By kind of traffic, (layers, experts) each."""
        return {name: unpacked(data, self.shape) for name, data in self.by_traffic.items()}


@dataclass(frozen=True, slots=True)
class ExpertLog:
    """The experts of the tokens of one sequence, in the order of the text."""

    tokens: tuple[int, ...]
    """Token ids, from the start of the prompt."""
    experts: bytes
    """uint16, little-endian: (tokens, layers, top-k)."""
    left_out: int = 0
    """Tokens behind these that were not kept."""

    def array(self, shape: ExpertShape) -> npt.NDArray[np.uint16]:
        """(tokens, layers, top-k)."""
        return np.frombuffer(self.experts, "<u2").reshape(len(self.tokens), shape.layers, shape.top_k)


@dataclass(frozen=True, slots=True)
class ExpertUse:
    """Which experts one request used, all of its sequences together. Tokens found in the prefix cache used none."""

    shape: ExpertShape
    tokens: int
    """Tokens that were computed, those computed again after a preemption included."""
    distinct: int
    """Pairs of layer and expert that at least one token went to."""
    entropy: float
    """How evenly tokens spread over the experts of a layer, 0 (one expert) to 1 (evenly), mean over layers."""
    top: tuple[tuple[int, int, float], ...] = ()
    """The most used: layer, expert, share of the tokens, 0 to 1; at most `TOP_NAMED`."""
    logs: tuple[ExpertLog, ...] = ()
    """For requests that asked for it: one per sequence."""

    @property
    def width(self) -> float:
        """Share of all pairs of layer and expert that were used, 0 to 1."""
        return self.distinct / (self.shape.layers * self.shape.experts)


def packed(counts: Counts) -> bytes:
    """Counts (layers, experts) as they travel: int64, little-endian, row by row."""
    return counts.astype("<i8").tobytes()


def unpacked(data: bytes, shape: ExpertShape) -> Counts:
    """The opposite of `packed`. Raises `ValueError` if it is not of that shape."""
    return np.frombuffer(data, "<i8").reshape(shape.layers, shape.experts).astype(np.int64)


def used(counts: Counts, shape: ExpertShape, logs: tuple[ExpertLog, ...] = ()) -> ExpertUse:
    """The summary of a request's counts (layers, experts)."""
    per_layer = counts.sum(axis=1)
    tokens = int(per_layer.max(initial=0)) // shape.top_k
    largest = np.argsort(-counts, axis=None, kind="stable")[:TOP_NAMED]
    top = []
    for layer, expert in zip(*np.unravel_index(largest, counts.shape), strict=True):
        if counts[layer, expert]:
            top.append((int(layer), int(expert), float(counts[layer, expert] / max(1, tokens))))
    return ExpertUse(
        shape=shape,
        tokens=tokens,
        distinct=int(np.count_nonzero(counts)),
        entropy=float(entropy(counts).mean()) if tokens else 0.0,
        top=tuple(top),
        logs=logs,
    )


def entropy(counts: npt.NDArray[np.int64] | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Entropy of each layer's spread over its experts, by its largest possible value: (layers,), 0 to 1."""
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    logs = np.log(shares, out=np.zeros(counts.shape), where=shares > 0)
    most = np.log(counts.shape[1]) if counts.shape[1] > 1 else 1.0
    return np.asarray(-(shares * logs).sum(axis=1) / most)
