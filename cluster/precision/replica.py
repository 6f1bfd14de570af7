"""What the ladder sees of one replica, and what it makes of that: pressed, calm, and the cost of a switch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from cluster.config.precision import EnterConfig, LeaveConfig

RETRY_DOUBLINGS: Final = 6
"""A switch that failed is tried again after the dwell time, then after twice that, and so on, up to so many times over."""


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """Snapshot of one replica; all times are on one clock, that of `now_s` of a decision."""

    name: str
    level: int
    level_since_s: float
    """When its level last changed; -inf: never."""
    kv_precision: str
    """`auto` (the model's own) or `fp8`."""
    kv_switched_s: float
    """When its KV precision last changed; -inf: never."""
    switching: bool
    """An order is under way whose end was not told yet."""
    kv_usage: float
    """Share of the KV cache it has now that is in use, 0 to 1."""
    kv_tokens: int
    """Tokens that its KV cache holds now."""
    own_kv_tokens: int
    """Tokens that it holds at the model's own precision; 0: not known."""
    preemptions_per_s: float
    """Requests preempted per second, without those that a switch forced."""
    waiting: float
    """Requests queued inside the engine, and its part of the ingress's line."""
    queue_growth_per_s: float
    """Requests per second by which `waiting` grows."""
    prefix_hits_per_s: float
    """Tokens per second that were found in the prefix cache."""
    prefill_tokens_per_s: float | None
    """The fastest that it was seen to read prompts, tokens per second; None: not known."""
    calm_since_s: float | None
    """Since when `Ladder.is_calm` holds; None: it does not."""
    kv_precisions: tuple[str, ...]
    """KV precisions that its engine can switch to while it runs; from each it can return to `auto`. Empty: it cannot switch."""
    kv_failed_s: float = -math.inf
    """When a switch of its KV precision failed last; -inf: the last one did not."""
    kv_failures: int = 0
    """Switches that failed one after the other (a count)."""

    def retry_at_s(self, dwell_s: float) -> float:
        """Before when no switch of its KV precision is tried again; -inf: none has failed."""
        if not self.kv_failures:
            return -math.inf
        return self.kv_failed_s + dwell_s * float(1 << min(self.kv_failures - 1, RETRY_DOUBLINGS))


def is_pressed(enter: EnterConfig, leave: LeaveConfig, state: ReplicaState) -> tuple[str, str] | None:
    """Cause (`kv_usage`, `preemptions` or `queue_growth`) and a sentence with the figures; None: not pressed.

    A queue in front of a cache with room is the processor's: no measure here shortens it, so it does not count.
    """
    if state.kv_usage >= enter.kv_usage:
        return "kv_usage", f"{state.kv_usage:.0%} of its KV cache is in use, {enter.kv_usage:.0%} is pressure"
    if state.preemptions_per_s >= enter.preemptions_per_s:
        return (
            "preemptions",
            f"{state.preemptions_per_s:.2g} requests a second are preempted, {enter.preemptions_per_s:g} is pressure",
        )
    if state.queue_growth_per_s >= enter.queue_growth_per_s and state.kv_usage > leave.kv_usage:
        grows = f"its queue grows by {state.queue_growth_per_s:.2g} requests a second, {enter.queue_growth_per_s:g} is pressure"
        return "queue_growth", f"{grows}, and {state.kv_usage:.0%} of its KV cache is in use"
    return None


def is_calm(leave: LeaveConfig, state: ReplicaState, *, own_cache: bool = False) -> bool:
    """Whether every figure is at or below its `leave` threshold. A queue in front of a cache with room does not count.

    With `own_cache`, the KV usage is what it would be in the cache of the model's own precision.
    """
    usage = own_usage(state) if own_cache else state.kv_usage
    return usage <= leave.kv_usage and state.preemptions_per_s <= leave.preemptions_per_s


def own_usage(state: ReplicaState) -> float:
    """Tokens in use, as a share of those that the cache of the model's own precision holds; more than 1: they do not fit."""
    held = state.own_kv_tokens or state.kv_tokens
    return state.kv_usage * state.kv_tokens / held if held else state.kv_usage


def switch_cost_s(state: ReplicaState, dwell_s: float) -> float | None:
    """Seconds of reading prompts that a switch of the KV precision costs; None: the replica's speed is not known.

    All that runs is computed anew. What the prefix cache held is lost, too: the hits of `dwell_s` seconds, at most what is
    cached and not in use.
    """
    if not state.prefill_tokens_per_s:
        return None
    running = state.kv_usage * state.kv_tokens
    lost_hits = min(state.prefix_hits_per_s * dwell_s, (1 - state.kv_usage) * state.kv_tokens)
    return (running + lost_hits) / state.prefill_tokens_per_s
