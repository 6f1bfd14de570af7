"""Which replica of a model takes a request: least work and memory first, but back to where its prefix is cached. A pure function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

STALE_AFTER_S: Final = 3.0
"""Seconds after which what a replica told of itself does not count; it tells four times a second."""

KV_WEIGHT: Final = 0.5
"""What a full KV cache counts; all places taken count 1."""
PREFIX_WEIGHT: Final = 0.75
"""What a wholly cached prompt is worth: as much as three quarters of a replica's places."""
AFFINITY_SLACK: Final = 4
"""Requests that a replica with the prefix may have more than the one with the fewest; past it, it draws nobody. Many requests with
one prefix, a long system prompt say, would else all go there, and wait for each other."""
_STALE: Final = 1.5
"""What a replica counts of which nothing recent is known: as if it was full in every respect."""
_FULL: Final = 1e6
FULL_KV: Final = 0.95
"""KV usage from which a cached prefix draws nobody: its blocks are about to be evicted, or others of the replica are."""


class Replica(NamedTuple):
    """One replica that can take the request. A tuple, as one is made per replica and request."""

    name: str
    load: float
    """Requests that it runs or queues, as it told or as were sent to it since, whichever is more."""
    places: int
    """Requests that it takes at most."""
    kv_usage: float | None = None
    """Fraction of its KV blocks in use, 0 to 1; None: not told, or it has none."""
    age_s: float = 0.0
    """Seconds since it told of itself."""


class ReplicaChoice(NamedTuple):
    """Replicas by rank, the one to try first, and why it is that one."""

    order: tuple[str, ...]
    reason: str


def choose_replica(replicas: Sequence[Replica], cached: Mapping[str, float], turns: Mapping[str, int]) -> ReplicaChoice:
    """Order `replicas`, all of them healthy.

    `cached` is the share of the prompt, 0 to 1, that a replica is known to have served before, by name; those it does not hold
    have none of it. `turns` says who was chosen when, a number that grows: among equals whoever was chosen longest ago comes
    first, so that requests that come together are spread. What is too old counts as bad news; if it is for all, all are equal
    but for their load, which is known here. The same arguments always give the same order.
    """
    if not replicas:
        return ReplicaChoice((), "no replica can take it")
    all_stale = True
    for replica in replicas:
        if replica.age_s <= STALE_AFTER_S:
            all_stale = False
            break
    ranked = []
    turn_of = turns.get
    draws = min([replica[1] for replica in replicas]) + AFFINITY_SLACK if cached else 0.0
    for name, load, places, kv_usage, age_s in replicas:
        cost = load / places
        # Full ones come last whatever they hold: Serve would only refuse there.
        if cost >= 1.0:
            cost += _FULL
        if age_s > STALE_AFTER_S:
            if not all_stale:
                cost += _STALE
        elif kv_usage is not None:
            cost += KV_WEIGHT * kv_usage
        fresh = all_stale or age_s <= STALE_AFTER_S
        if name in cached and fresh and load <= draws and (kv_usage is None or kv_usage < FULL_KV):
            cost -= PREFIX_WEIGHT * cached[name]
        ranked.append((cost, turn_of(name, 0), name))
    ranked.sort()
    order = tuple([entry[2] for entry in ranked])
    return ReplicaChoice(order, _reason(replicas, order[0], cached, all_stale))


def _reason(replicas: Sequence[Replica], chosen: str, cached: Mapping[str, float], all_stale: bool) -> str:
    if len(replicas) == 1:
        return "the only one"
    if all_stale:
        return "nothing recent is known of any"
    held = cached.get(chosen, 0.0)
    if held > 0:
        return f"holds {held:.0%} of the prompt"
    replica = next(replica for replica in replicas if replica.name == chosen)
    memory = "" if replica.kv_usage is None else f", KV cache {replica.kv_usage:.0%} used"
    passed = "; the one that holds the prefix is too busy" if any(cached.values()) else ""
    return f"least work ({replica.load:g} requests{memory}){passed}"
