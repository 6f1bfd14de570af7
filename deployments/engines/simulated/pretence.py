"""What the simulated engine says of how sure it was: made up, from the config and the tokens, always the same."""

from __future__ import annotations

import math

from cluster.routing.confidence import ConfidenceMeter, TokenConfidence
from deployments.engines.protocol import judged_event

_SPREAD = 0.1
"""How far a token's probability lies from the mean at most."""


class Pretence:
    """Of one request."""

    def __init__(self, mean: float, after: int | None) -> None:
        self._mean = mean
        self._after = after
        self._meter = ConfidenceMeter()

    def add(self, token: int) -> None:
        """Take in a generated token."""
        probability = min(1.0, max(0.001, self._mean + _SPREAD * ((token % 201) / 100 - 1)))
        second = (1 - probability) / 2
        first = max(probability, second)
        top = [math.log(first)] + ([math.log(min(probability, second) or 1e-9)] if second > 0 else [])
        self._meter.add(math.log(probability), top)

    def early(self) -> bytes | None:
        """The event that tells of the first tokens, once, when enough of them came."""
        if self._after is None or self._meter.tokens < self._after:
            return None
        self._after = None
        told = self._meter.result()
        return None if told is None else judged_event(told)

    def result(self) -> TokenConfidence | None:
        """Of the whole answer."""
        return self._meter.result()
