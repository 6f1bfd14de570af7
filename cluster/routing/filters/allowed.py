"""A caller may name the models that are allowed for a request."""

from __future__ import annotations

from cluster.routing.option import Option
from cluster.routing.signals import RequestSignals


def against(signals: RequestSignals, option: Option) -> str | None:
    """Words if the caller did not allow the model."""
    if signals.allowed_models is None or option.model in signals.allowed_models:
        return None
    return "is not among the caller's allowed models"
