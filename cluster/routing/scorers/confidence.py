"""How confident a model's last answers to requests of this intent were."""

from __future__ import annotations

from cluster.routing.option import Option
from cluster.routing.signals import RequestSignals

NEUTRAL = 0.5
"""Of a model that has not answered such a request yet: neither trusted nor mistrusted."""


def score(signals: RequestSignals, option: Option) -> float:
    """The moving average, 0 to 1."""
    return option.state.confidence.get(signals.intent.value or "", NEUTRAL)


def why(signals: RequestSignals, option: Option) -> str:
    """The same in words."""
    known = option.state.confidence.get(signals.intent.value or "")
    if known is None:
        return f"no confidence known for intent {signals.intent.value or 'missing'}"
    return f"confidence {known:.2f} in answers of intent {signals.intent.value}"
