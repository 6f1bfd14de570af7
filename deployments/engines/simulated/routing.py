"""Where simulated tokens go: made-up routes that are as uneven as the config says, and move with the kind of traffic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final
from zlib import crc32

import numpy as np
import numpy.typing as npt

from cluster.config.engine import SimulatedExperts
from cluster.experts.load import Counts, ExpertShape

ROUTES_AT_ONCE: Final = 1 << 20
"""Routes (token, layer, place in the top-k) that are made at once, so that memory stays small."""

_BITS: Final = 32
_ONE: Final = 1 << _BITS
"""Probabilities are whole numbers out of this: they add up exactly, so no token goes to an expert twice."""

_Words = npt.NDArray[np.uint64]


class Router:
    """The routes of one kind of traffic; the same seed, kind, token and layer always give the same experts.

    Which experts are popular follows from the seed, the layer and the traffic, and how popular they are from Zipf's law.
    The token chooses by systematic sampling (Madow 1949): expert n of a layer comes up for just its share of all tokens.
    """

    def __init__(self, config: SimulatedExperts, seed: int, traffic: str) -> None:
        self.shape = ExpertShape(config.layers, config.experts, config.top_k)
        layers, experts = self.shape.layers, self.shape.experts
        self._salts = _mixed(np.arange(layers, dtype=np.uint64) + np.uint64(seed))
        drawn = _mixed(self._salts + np.uint64(crc32(traffic.encode())))[:, None] + np.arange(experts, dtype=np.uint64)
        ranks = _mixed(drawn).argsort(axis=1).argsort(axis=1)
        ends = _probabilities(config)[ranks].cumsum(axis=1)
        # Layers lie behind each other on one line, so that one search answers for all of them.
        self._starts = np.arange(layers) * (self.shape.top_k * _ONE)
        self._ends = (ends + self._starts[:, None]).ravel()
        self._steps = np.arange(self.shape.top_k) * _ONE

    def routes(self, tokens: Sequence[int]) -> Iterator[npt.NDArray[np.int64]]:
        """Layer times experts plus expert, (tokens, layers, top-k), in parts one behind the other."""
        at_once = max(1, ROUTES_AT_ONCE // (self.shape.layers * self.shape.top_k))
        for start in range(0, len(tokens), at_once):
            ids = np.array([fitting_id(token) for token in tokens[start : start + at_once]], np.uint64)
            drawn = (_mixed(ids[:, None] + self._salts) >> np.uint64(64 - _BITS)).astype(np.int64)
            yield self._ends.searchsorted((drawn + self._starts)[..., None] + self._steps, side="right")

    def counts(self, tokens: Sequence[int]) -> Counts:
        """Tokens by layer and expert, (layers, experts)."""
        pairs = self.shape.layers * self.shape.experts
        total = np.zeros(pairs, np.int64)
        for routes in self.routes(tokens):
            total += np.bincount(routes.ravel(), minlength=pairs)
        return total.reshape(self.shape.layers, self.shape.experts)

    def experts(self, tokens: Sequence[int]) -> bytes:
        """The experts of each token, as in `ExpertLog`."""
        return b"".join((routes % self.shape.experts).astype("<u2").tobytes() for routes in self.routes(tokens))


def _probabilities(config: SimulatedExperts) -> npt.NDArray[np.int64]:
    """That a token goes to the expert of each rank, (experts,), out of `_ONE`: none more than that, together top-k of it."""
    weights = np.arange(1, config.experts + 1) ** -config.concentration
    certain = 0
    # What Zipf's law would give the first ones beyond certainty goes to the others.
    while weights[certain] * (config.top_k - certain) > weights[certain:].sum():
        certain += 1
    rest = weights[certain:] * ((config.top_k - certain) / weights[certain:].sum())
    parts = np.minimum(np.concatenate([np.ones(certain), rest]) * _ONE, _ONE).astype(np.int64)
    missing = config.top_k * _ONE - int(parts.sum())
    room = np.flatnonzero(parts < _ONE)
    parts[room[:missing]] += 1
    return np.asarray(parts)


def _mixed(words: _Words) -> _Words:
    """splitmix64 (Steele et al. 2014) of each word: the same everywhere, in every process."""
    z = words + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def fitting_id(token: int) -> int:
    """A token id, which a caller may have made up, as a number of 63 bits."""
    return token & (2**63 - 1)
