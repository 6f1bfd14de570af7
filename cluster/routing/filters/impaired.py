"""A model whose experts cannot all be computed answers worse than another model that is whole."""

from __future__ import annotations

from cluster.routing.option import Option
from cluster.routing.signals import RequestSignals


def against(_signals: RequestSignals, option: Option) -> str | None:
    """Words if it is impaired."""
    return f"is impaired ({option.state.impaired})" if option.state.impaired else None
