"""A model needs a replica that is ready."""

from __future__ import annotations

from cluster.routing.option import Option
from cluster.routing.signals import RequestSignals


def against(_signals: RequestSignals, option: Option) -> str | None:
    """Words if no replica is ready."""
    if option.state.ready_replicas > 0:
        return None
    return f"is not ready ({option.state.reason or 'no replica'})"
