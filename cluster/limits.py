"""Limits per key: requests and tokens per minute, and requests at once.

A sliding window of one-second slots. Every slot that overlaps the last 60 seconds counts in full, so in no window of 60
seconds, wherever it starts, is more admitted than the limit; in return a second's worth may be admitted up to a second
late. (A token bucket, the usual choice, admits up to twice the limit in some windows.)

All functions take a state and a clock value and return a new state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from cluster.api.errors import ApiError
from cluster.keys import KeyLimits

WINDOW_S: Final = 60

Slots = tuple[tuple[int, int], ...]
"""(second, amount) pairs, oldest first; 61 at most."""


@dataclass(frozen=True, slots=True)
class LimiterState:
    """What one key has used in the last minute, and what it has in flight."""

    requests: Slots = ()
    tokens: Slots = ()
    running: int = 0
    clock: float = 0.0
    """Latest time seen, seconds; a clock that goes back stands still here."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a request is admitted, and why not."""

    allowed: bool
    reason: str
    retry_after_s: float | None = None
    """Seconds until the same request would be admitted, if nothing else comes; None: admitted, or not known."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """`x-ratelimit-*` headers for the response, whatever it is."""


def admit(state: LimiterState, limits: KeyLimits, now: float, tokens: int) -> tuple[LimiterState, Decision]:
    """Admits one request that reserves `tokens` tokens (0 or more, an estimate), or says why not and until when.

    Follow an admitted request with `settle` when it ends. A refused one changes nothing.
    """
    current = _advance(state, now)
    waits = (
        _wait(current.requests, limits.requests_per_minute, current.clock, 1),
        _wait(current.tokens, limits.tokens_per_minute, current.clock, tokens),
    )
    if limits.tokens_per_minute is not None and tokens > limits.tokens_per_minute:
        message = f"the request alone is larger than the limit of {limits.tokens_per_minute} tokens per minute"
        return current, Decision(False, message, None, _headers(current, limits))
    if max(waits) > 0:
        unit, limit = (
            ("requests", limits.requests_per_minute) if waits[0] >= waits[1] else ("tokens", limits.tokens_per_minute)
        )
        return current, Decision(False, f"limit of {limit} {unit} per minute", max(waits), _headers(current, limits))
    if limits.concurrency is not None and current.running >= limits.concurrency:
        return current, replace(too_many_at_once(limits.concurrency), headers=_headers(current, limits))
    admitted = replace(
        current,
        requests=_add(current.requests, current.clock, 1),
        tokens=_add(current.tokens, current.clock, tokens),
        running=current.running + 1,
    )
    return admitted, Decision(True, "within limits", None, _headers(admitted, limits))


def settle(state: LimiterState, now: float, admitted_at: float, reserved: int, used: int) -> LimiterState:
    """Ends an admitted request: frees its place, and charges the tokens `used` instead of those `reserved`.

    What was reserved too much is given back to the second it was taken from; what was used beyond is charged now.
    """
    current = _advance(state, now)
    tokens = current.tokens
    if used > reserved:
        tokens = _add(tokens, current.clock, used - reserved)
    else:
        second = math.floor(admitted_at)
        back = reserved - used
        tokens = tuple((slot, max(0, amount - back) if slot == second else amount) for slot, amount in tokens)
    return replace(current, tokens=tokens, running=max(0, current.running - 1))


def too_many_at_once(concurrency: int) -> Decision:
    """A key has as many requests in flight as its limit allows."""
    return Decision(False, f"limit of {concurrency} requests at once")


def refused(decision: Decision) -> ApiError:
    """The 429 for a request that was not admitted."""
    headers = dict(decision.headers)
    when = "once others have ended"
    if decision.retry_after_s is not None:
        seconds = math.ceil(decision.retry_after_s)
        headers["retry-after"] = str(seconds)
        when = f"in {seconds} s"
    elif decision.reason.startswith("the request alone"):
        when = "with a shorter prompt or a smaller max_tokens"
    else:
        headers["retry-after"] = "1"
    message = f"Rate limit reached: {decision.reason}. Try again {when}."
    return ApiError(429, "rate_limit_exceeded", message, type="rate_limit_error", headers=headers)


def prune(states: Mapping[str, LimiterState], now: float, max_states: int) -> dict[str, LimiterState]:
    """`states` without those that hold nothing any more, and at most `max_states` of them.

    Those in flight are kept before those that are not, later used before earlier used.
    """
    current = {key: _advance(state, now) for key, state in states.items()}
    alive = {key: state for key, state in current.items() if state.running or state.requests or state.tokens}
    if len(alive) <= max_states:
        return alive
    ordered = sorted(alive, key=lambda key: (alive[key].running > 0, states[key].clock), reverse=True)
    return {key: alive[key] for key in ordered[:max_states]}


def _advance(state: LimiterState, now: float) -> LimiterState:
    clock = max(now, state.clock)
    first = math.floor(clock) - WINDOW_S
    return replace(state, requests=_since(state.requests, first), tokens=_since(state.tokens, first), clock=clock)


def _since(slots: Slots, first: int) -> Slots:
    if not slots or slots[0][0] >= first:
        return slots
    return tuple(slot for slot in slots if slot[0] >= first)


def _add(slots: Slots, clock: float, amount: int) -> Slots:
    second = math.floor(clock)
    if not amount:
        return slots
    if slots and slots[-1][0] == second:
        return (*slots[:-1], (second, slots[-1][1] + amount))
    return (*slots, (second, amount))


def _used(slots: Slots) -> int:
    return sum(amount for _, amount in slots)


def _wait(slots: Slots, limit: int | None, clock: float, amount: int) -> float:
    """Seconds until `amount` more fits, 0 if it does now; endless waits end with the window."""
    if limit is None or amount == 0:
        return 0.0
    excess = _used(slots) + amount - limit
    for second, used in slots:
        if excess <= 0:
            break
        excess -= used
        if excess <= 0:
            return second + WINDOW_S + 1 - clock
    return 0.0 if excess <= 0 else float(WINDOW_S)


def _headers(state: LimiterState, limits: KeyLimits) -> dict[str, str]:
    headers: dict[str, str] = {}
    for unit, limit, slots in (
        ("requests", limits.requests_per_minute, state.requests),
        ("tokens", limits.tokens_per_minute, state.tokens),
    ):
        if limit is not None:
            headers[f"x-ratelimit-limit-{unit}"] = str(limit)
            headers[f"x-ratelimit-remaining-{unit}"] = str(max(0, limit - _used(slots)))
            reset = slots[-1][0] + WINDOW_S + 1 - state.clock if slots else 0.0
            headers[f"x-ratelimit-reset-{unit}"] = f"{math.ceil(reset)}s"
    return headers
