"""How much of a model's KV cache is free."""

from __future__ import annotations

from cluster.routing.option import Option
from cluster.routing.signals import RequestSignals


def score(_signals: RequestSignals, option: Option) -> float:
    """1 when the cache is empty, 0 when it is full; 0 when what is known is too old, 1 when nothing was ever told."""
    if option.stale:
        return 0.0
    usage = option.state.kv_usage
    if usage is None or usage <= 0.0:
        return 1.0
    return 1.0 - usage if usage < 1.0 else 0.0


def why(_signals: RequestSignals, option: Option) -> str:
    """The same in words."""
    if option.stale:
        return f"KV usage told {option.state.load_age_s:.1f} s ago, which is too old"
    usage = option.state.kv_usage
    return "KV usage missing" if usage is None else f"KV cache {usage:.0%} used"
