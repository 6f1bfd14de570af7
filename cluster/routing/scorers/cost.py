"""What a model's tokens cost."""

from __future__ import annotations

from cluster.routing.option import Option
from cluster.routing.signals import RequestSignals

CONSTANT = True


def score(_signals: RequestSignals, option: Option) -> float:
    """1 for what costs nothing, 1/2 at one unit of money per million tokens, 1/11 at ten."""
    return 1.0 / (1.0 + option.config.price_per_million_tokens)


def why(_signals: RequestSignals, option: Option) -> str:
    """The same in words."""
    return f"price {option.config.price_per_million_tokens:g} per million tokens"
