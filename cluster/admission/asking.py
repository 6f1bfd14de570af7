"""What asks for a model, and what waits for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cluster.routing.latency_class import LatencyClass

RANKS: Final = {LatencyClass.INTERACTIVE: 0, LatencyClass.STANDARD: 1, LatencyClass.BATCH: 2}
"""Urgency by class, 0 the most urgent."""


@dataclass(frozen=True, slots=True)
class Asking:
    """One request."""

    tenant: str
    """Whose it is; empty: no key was shown."""
    latency_class: LatencyClass
    tokens: int
    """Prompt tokens, estimated, and those that it asks for."""
    timeout_s: float
    """Seconds after which its answer is of no use."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that waits."""

    asking: Asking
    since_s: float
    number: int
    """Order of arrival."""

    def rank(self, now_s: float, aging_s: float) -> int:
        """Its urgency now, 0 the most urgent: every `aging_s` seconds it becomes more urgent by one class."""
        return max(0, RANKS[self.asking.latency_class] - int((now_s - self.since_s) / aging_s))
