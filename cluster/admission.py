"""Whether a request goes to its model now, waits, or is refused; and who of those that wait is next. Pure functions.

What is admitted fits: into the places of the replicas, and, by its prompt and the tokens that it asks for, into their KV memory.
Priorities age (a batch request that has waited long enough is as urgent as any), and within one urgency tenants take turns by
what they were served, as in fair queueing (Demers, Keshav, Shenker 1989).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cluster.routing.latency_class import LatencyClass

RANKS: Final = {LatencyClass.INTERACTIVE: 0, LatencyClass.STANDARD: 1, LatencyClass.BATCH: 2}
"""Urgency by class, 0 the most urgent."""

MAX_RETRY_AFTER_S: Final = 60


class Outcome(StrEnum):
    """What becomes of a request that comes."""

    ADMITTED = "admitted"
    QUEUED = "queued"
    REJECTED = "rejected"


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
class Asking:
    """One request."""

    tenant: str
    """Whose it is; empty: no key was shown."""
    latency_class: LatencyClass
    tokens: int
    """Prompt tokens, estimated, and those that it asks for."""
    timeout_s: float
    """Seconds after which its answer is of no use."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that waits."""

    asking: Asking
    since_s: float
    number: int
    """Order of arrival."""


@dataclass(frozen=True, slots=True)
class Held:
    """What was admitted and has not ended."""

    requests: int = 0
    tokens: int = 0


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
    """Seconds after which the queue, at the rate at which it drains, will have room."""


def decide(
    asking: Asking, room: Room, held: Held, waiting: Sequence[Waiting], drain_per_s: float | None, tenant_share: float
) -> AdmissionDecision:
    """What becomes of a request that comes now.

    `drain_per_s` is how many requests a second have ended of late, None if that is not known; `tenant_share`, 0 to 1, of the queue
    is what one tenant may hold. A model without a ready replica admits all: dispatch says what is wrong, or finds another model.
    """
    if not room.places or (not waiting and fits(asking, room, held)):
        return AdmissionDecision(Outcome.ADMITTED, "room", "there is room")
    later = _drained_after(len(waiting) + 1, drain_per_s)
    retry = min(MAX_RETRY_AFTER_S, max(1, math.ceil(later)))
    own = sum(one.asking.tenant == asking.tenant for one in waiting)
    share = max(1, math.floor(tenant_share * room.queue))
    if asking.tenant and own >= share:
        reason = f"{own} requests of this tenant wait already, which is its share of the queue"
        return AdmissionDecision(Outcome.REJECTED, "tenant_queue_full", reason, 429, retry)
    if len(waiting) >= room.queue:
        reason = f"{held.requests} requests are under way and {len(waiting)} wait, which is all that may"
        return AdmissionDecision(Outcome.REJECTED, "saturated", reason, 503, retry)
    if drain_per_s is not None and later > asking.timeout_s:
        reason = f"it would wait about {later:.0f} s, longer than the {asking.timeout_s:g} s that it may take"
        return AdmissionDecision(Outcome.REJECTED, "saturated", reason, 503, retry)
    why = (
        "others wait"
        if waiting
        else "all places are taken"
        if held.requests >= room.places
        else "its KV memory is reserved"
    )
    return AdmissionDecision(Outcome.QUEUED, "queued", why, retry_after_s=retry)


def fits(asking: Asking, room: Room, held: Held) -> bool:
    """Whether there is a place and memory. A request alone always fits: whether it is too large, its contract or the engine knows."""
    if held.requests >= room.places:
        return False
    return room.kv_tokens is None or not held.requests or held.tokens + asking.tokens <= room.kv_tokens


def next_in_line(
    waiting: Sequence[Waiting], served: Mapping[str, float], now_s: float, aging_s: float
) -> Waiting | None:
    """Who is next: the most urgent; among equals whose tenant was served least (tokens, by tenant); among these who came first.

    Every `aging_s` seconds a request becomes more urgent by one class. Nobody is passed over because something smaller would fit.
    """
    if not waiting:
        return None

    def key(one: Waiting) -> tuple[int, float, int]:
        rank = RANKS[one.asking.latency_class] - int((now_s - one.since_s) / aging_s)
        return max(0, rank), served.get(one.asking.tenant, 0.0), one.number

    return min(waiting, key=key)


def _drained_after(requests: int, drain_per_s: float | None) -> float:
    """Seconds until so many have ended."""
    return requests / drain_per_s if drain_per_s else 0.0
