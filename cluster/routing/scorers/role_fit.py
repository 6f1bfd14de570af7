"""Those that play the role come before those that stand in for it, and these in the order of the fallbacks."""

from __future__ import annotations

from cluster.routing.option import Option
from cluster.routing.signals import RequestSignals

CONSTANT = True


def score(_signals: RequestSignals, option: Option) -> float:
    """1 for the role's own models, then 1/2, 1/3 and so on."""
    return 1.0 / (1 + option.place)


def why(_signals: RequestSignals, option: Option) -> str:
    """The same in words."""
    return "plays the role" if option.place == 0 else f"fallback {option.place}"
