"""Whether a model has lately begun its answers as soon as the role promises."""

from __future__ import annotations

from cluster.routing.option import Option
from cluster.routing.signals import RequestSignals


def score(_signals: RequestSignals, option: Option) -> float:
    """1 within the target, then target over measured; 1 without a target or without answers."""
    target, measured = option.latency_target_s, option.state.ttft_s
    if target is None or measured is None or measured <= target:
        return 1.0
    return target / measured


def why(_signals: RequestSignals, option: Option) -> str:
    """The same in words."""
    target, measured = option.latency_target_s, option.state.ttft_s
    if measured is None:
        return "time to first token missing"
    aim = "no target" if target is None else f"target {target:g} s"
    return f"first token after {measured:.2f} s, {aim}"
