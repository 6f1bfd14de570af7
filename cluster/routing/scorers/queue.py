"""How busy a model's replicas are. Weakness: bursts shorter than the replicas' reports (0.25 s) are not seen."""

from __future__ import annotations

from cluster.routing.option import Option
from cluster.routing.signals import RequestSignals


def score(_signals: RequestSignals, option: Option) -> float:
    """1 when idle, 0 when full; 0 when what is known is too old, 1 when nothing was ever told."""
    state = option.state
    if option.stale:
        return 0.0
    if state.running is None or state.waiting is None:
        return 1.0
    busy = (state.running + state.waiting) / option.config.replicas.max_ongoing_requests
    return 1.0 - busy if busy < 1.0 else 0.0


def why(_signals: RequestSignals, option: Option) -> str:
    """The same in words."""
    state = option.state
    if option.stale:
        return f"load told {state.load_age_s:.1f} s ago, which is too old"
    if state.running is None or state.waiting is None:
        return "load missing"
    return f"{state.running:g} running and {state.waiting:g} waiting per replica"
