"""Whether a request goes to its model now, waits, or is refused. Pure functions.

What is admitted fits: into the places of the replicas, and, by its prompt and the tokens that it asks for, into their KV memory.
Only those that are at least as urgent are in a request's way: when the line is full, the last of the less urgent ones makes room.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cluster.admission.asking import Asking, Waiting
from cluster.admission.line import Line

MAX_RETRY_AFTER_S: Final = 60


class Outcome(StrEnum):
    """What becomes of a request."""

    ADMITTED = "admitted"
    QUEUED = "queued"
    REJECTED = "rejected"
    DISPLACED = "displaced"
    """It waited, and had to make room for a more urgent one."""


@dataclass(frozen=True, slots=True)
class Room:
    """What one model has to give, as far as this ingress may take it."""

    places: int
    """Requests that its replicas take at once; 0: it has none ready."""
    kv_tokens: int | None
    """Tokens that may be reserved in their KV memory; None: it has none that is known."""
    queue: int
    """Requests that may wait."""


@dataclass(frozen=True, slots=True)
class Held:
    """What was admitted and has not ended."""

    requests: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Terms:
    """What the operator set and the clock, for one decision."""

    now_s: float
    aging_s: float
    """Seconds of waiting that make a request more urgent by one class."""
    tenant_share: float
    """What one tenant may hold of the line, 0 to 1."""
    drain_per_s: float | None = None
    """Requests a second that end while others wait; None: not known well enough to refuse anybody for it."""
    retry_per_s: float | None = None
    """The same, as far as can be said at all; None: not known."""


@dataclass(frozen=True, slots=True)
class AdmissionDecision:
    """What becomes of a request, and why."""

    outcome: Outcome
    code: str
    """A label for metrics and for the error's code."""
    reason: str
    status: int = 200
    """HTTP status of a refusal: 429 if the tenant's own share is used up, 503 if the model is saturated."""
    retry_after_s: int = 1
    """Seconds after which the line, at the rate at which it drains, will have room."""
    displaces: Waiting | None = None
    """Who is refused in its place."""


def decide(asking: Asking, room: Room, held: Held, line: Line, terms: Terms) -> AdmissionDecision:
    """What becomes of a request that comes now.

    A model without a ready replica admits all: dispatch says what is wrong, or finds another model.
    """
    if not room.places or (not len(line) and fits(asking, room, held)):
        return AdmissionDecision(Outcome.ADMITTED, "room", "there is room")
    waiting, own = len(line), line.of(asking.tenant)
    retry = retry_after_s(waiting, terms.retry_per_s)
    displaced: Waiting | None = None
    if asking.tenant and own >= max(1, math.floor(terms.tenant_share * room.queue)):
        displaced = line.behind(asking, terms.now_s, terms.aging_s, own=True)
        if displaced is None:
            reason = f"{own} requests of this tenant wait already, which is its share of the queue"
            return AdmissionDecision(Outcome.REJECTED, "tenant_queue_full", reason, 429, retry)
    elif waiting >= room.queue:
        displaced = line.behind(asking, terms.now_s, terms.aging_s, own=False)
        if displaced is None:
            reason = f"{held.requests} requests are under way and {waiting} wait, which is all that may"
            return AdmissionDecision(Outcome.REJECTED, "saturated", reason, 503, retry)
    later = _drained_after(line.ahead_of(asking, terms.now_s, terms.aging_s) + 1, terms.drain_per_s)
    if later > asking.timeout_s:
        reason = f"it would wait about {later:.0f} s, longer than the {asking.timeout_s:g} s that it may take"
        return AdmissionDecision(Outcome.REJECTED, "saturated", reason, 503, retry)
    why = (
        "others wait"
        if waiting
        else "all places are taken"
        if held.requests >= room.places
        else "its KV memory is reserved"
    )
    return AdmissionDecision(Outcome.QUEUED, "queued", why, retry_after_s=retry, displaces=displaced)


def fits(asking: Asking, room: Room, held: Held) -> bool:
    """Whether there is a place and memory. A request alone always fits: whether it is too large, its contract or the engine knows."""
    if held.requests >= room.places:
        return False
    return room.kv_tokens is None or not held.requests or held.tokens + asking.tokens <= room.kv_tokens


def retry_after_s(waiting: int, drain_per_s: float | None) -> int:
    """Seconds after which so many that wait, and one more, are let in: 1 to 60."""
    return min(MAX_RETRY_AFTER_S, max(1, math.ceil(_drained_after(waiting + 1, drain_per_s))))


def _drained_after(requests: int, drain_per_s: float | None) -> float:
    """Seconds until so many have ended; 0 if the rate is not known."""
    return requests / drain_per_s if drain_per_s else 0.0
