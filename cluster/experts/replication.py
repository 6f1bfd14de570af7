"""How many replicas each pool of experts is to have, and which experts live together. Pure functions.

A pool gains replicas while what it gets exceeds `high` of what they can compute, the hottest pool first; it loses them once
that was below `low` for `dwell_s`, and all of them once no token came for `idle_s`, if that is allowed. Starting a replica and
moving a pair load weights: both draw on one budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from cluster.experts.placement import (
    Balance,
    Placement,
    Reals,
    Rearrangement,
    balanced,
    copies_of,
    rearrange,
    replica_loads,
)
from cluster.experts.replication_state import (
    BOUNDS,
    COLD,
    HOT,
    IDLE,
    INVOKED,
    LOADS,
    MEMORY,
    YIELDS,
    Blocked,
    Change,
    Decision,
    Limits,
    Memory,
    PoolMemory,
    PoolState,
    Snapshot,
)

__all__ = [
    "Blocked",
    "Change",
    "Decision",
    "Limits",
    "Memory",
    "PoolMemory",
    "PoolState",
    "Snapshot",
    "decide",
    "pool_loads",
]


@dataclass(slots=True)
class _Pool:
    """A pool while it is decided on."""

    number: int
    state: PoolState
    memory: PoolMemory
    load: float
    """Tokens a second."""
    pairs: int
    target: int
    cause: str = ""
    reason: str = ""

    @property
    def bytes(self) -> int:
        return self.pairs * self.state.pair_bytes

    def usage(self, replicas: int) -> float:
        """Load over the capacity of so many replicas."""
        if replicas <= 0:
            return math.inf if self.load > 0 else 0.0
        return self.load / (self.state.capacity * replicas)

    def needs(self, high: float) -> int:
        """The fewest replicas that keep it at `high`."""
        return math.ceil(self.load / (self.state.capacity * high) - 1e-9)

    def to(self, target: int, cause: str, reason: str) -> None:
        self.target, self.cause, self.reason = target, cause, reason


def decide(snapshot: Snapshot, now_s: float, balance: Balance | None = None) -> Decision:
    """The changes that are due now. `balance` is the algorithm that places experts anew; without one they stay where they are.

    Guarantees, from one decision to the next if the memory is handed on: the weights of all replicas stay within
    `memory_bytes` if they are; no more pairs are loaded within `interval_s` than `loads`; a pool does not turn from gaining to
    losing or back within `dwell_s`, except that a parked one wakes at once when it is invoked; a pool that had a token within
    `idle_s`, or for which one waits, is not parked; more heat for a pool never means fewer replicas for it; the same snapshot
    gives the same decision. Memory that a pool gives up can be used once it is free, which is in a later snapshot.
    """
    limits = snapshot.limits
    pools = _looked_at(snapshot, now_s)
    for pool in pools:
        _lower(pool, limits, now_s)
    budget = max(
        0, limits.loads - sum(pairs for at_s, pairs in snapshot.memory.loaded if now_s - at_s < limits.interval_s)
    )
    spent, blocked = _raise(pools, limits, now_s, budget)
    changes = tuple(
        Change(pool.state.name, pool.state.replicas, pool.target, pool.cause, pool.reason)
        for pool in pools
        if pool.target != pool.state.replicas
    )
    rearrangement = None
    # A replica that waits for the budget must not find it spent on moves; one that waits for memory is helped by them.
    if balance is not None and budget > spent and all(one.lacks == MEMORY for one in blocked):
        rearrangement = _rearranged(snapshot, now_s, budget - spent, balance)
        spent += 0 if rearrangement is None else rearrangement.loads
    return Decision(changes, tuple(blocked), rearrangement, _remembered(snapshot, pools, rearrangement, spent, now_s))


def pool_loads(placement: Placement, per_s: Reals, replicas: Sequence[int]) -> Reals:
    """Tokens a second of each pool, all its replicas together: (pools,).

    A pair that only pools without replicas hold counts as if each of them had one: that is what they would get.
    """
    numbers = np.asarray(replicas, np.float64)
    copies = copies_of(placement, numbers)
    orphaned = copies == 0
    holders = np.where(orphaned, placement.sum(axis=0), copies)
    per_copy = np.divide(per_s, holders, out=np.zeros(per_s.shape), where=holders > 0)
    served = np.einsum("ple,le->p", placement, np.where(orphaned, 0.0, per_copy)) * numbers
    return np.asarray(served + np.einsum("ple,le->p", placement, np.where(orphaned, per_copy, 0.0)))


def _looked_at(snapshot: Snapshot, now_s: float) -> list[_Pool]:
    loads = pool_loads(snapshot.placement, snapshot.per_s, [one.replicas for one in snapshot.pools])
    pairs = snapshot.placement.sum(axis=(1, 2))
    found = []
    for number, state in enumerate(snapshot.pools):
        memory = snapshot.memory.pools.get(state.name, PoolMemory())
        pool = _Pool(number, state, memory, float(loads[number]), int(pairs[number]), state.replicas)
        cold = state.replicas > 0 and pool.usage(state.replicas) < snapshot.limits.low
        since_s = (now_s if memory.cold_since_s is None else memory.cold_since_s) if cold else None
        pool.memory = replace(memory, cold_since_s=since_s)
        found.append(pool)
    return found


def _lower(pool: _Pool, limits: Limits, now_s: float) -> None:
    """Fewer replicas for a pool that does not need them, or may not have them."""
    state, replicas = pool.state, pool.state.replicas
    if replicas > limits.max_replicas:
        pool.to(limits.max_replicas, BOUNDS, f"{limits.max_replicas} replicas are the most that a pool may have")
    elif not _rested(pool, limits, now_s) or replicas == 0:
        return
    elif limits.idle_s is not None and state.waiting == 0 and now_s - state.last_token_s >= limits.idle_s:
        pool.to(0, IDLE, f"no token came for {limits.idle_s:g} s or more")
    else:
        since_s = pool.memory.cold_since_s
        fewer = max(limits.min_replicas, 1, pool.needs(limits.high))
        if since_s is not None and now_s - since_s >= limits.dwell_s and fewer < replicas:
            used = f"{pool.usage(replicas):.0%} of its capacity was used for {now_s - since_s:.0f} s"
            pool.to(fewer, COLD, f"less than {limits.low:.0%}, now {used}; {_replicas(fewer)} are enough")


def _rested(pool: _Pool, limits: Limits, now_s: float) -> bool:
    """Whether it may lose replicas."""
    return now_s - pool.memory.changed_s >= limits.dwell_s


def _raise(pools: list[_Pool], limits: Limits, now_s: float, budget: int) -> tuple[int, list[Blocked]]:
    """More replicas, one after the other, for the pools that need them most. Pairs that are loaded, and who got too few."""
    wanted = {pool.number: _wanted(pool, limits, now_s) for pool in pools}
    free = limits.memory_bytes - sum(max(pool.state.held, pool.state.replicas) * pool.bytes for pool in pools)
    leaving = sum(max(0, pool.state.held - pool.target) * pool.bytes for pool in pools)
    claims = [pool for pool in pools if wanted[pool.number] > pool.target]
    blocked: list[Blocked] = []
    spent = 0
    while claims:
        pool = min(claims, key=lambda one: _urgency(one, limits))
        if pool.pairs > budget - spent:
            blocked.append(
                Blocked(pool.state.name, LOADS, f"{pool.pairs} pairs to load, {budget - spent} are left of the budget")
            )
            claims.remove(pool)
        elif pool.bytes > free:
            if pool.bytes > free + leaving:
                leaving += _yielded(pool, pools, wanted, limits, now_s, pool.bytes - free - leaving)
            # What leaves is spoken for.
            leaving = max(0, leaving - pool.bytes)
            blocked.append(Blocked(pool.state.name, MEMORY, f"{pool.bytes} bytes to load, {free} are free"))
            claims.remove(pool)
        else:
            free -= pool.bytes
            spent += pool.pairs
            pool.to(pool.target + 1, *_why(pool, limits, wanted[pool.number]))
            if pool.target >= wanted[pool.number]:
                claims.remove(pool)
    return spent, blocked


def _wanted(pool: _Pool, limits: Limits, now_s: float) -> int:
    """Replicas that it would get if there were room for all."""
    state, memory = pool.state, pool.memory
    if pool.target < state.replicas:
        return pool.target
    least = max(1, limits.min_replicas)
    if state.replicas == 0:
        invoked = state.waiting > 0 or limits.idle_s is None or now_s - state.last_token_s < limits.idle_s
        return min(max(least, pool.needs(limits.high)), limits.max_replicas) if invoked else 0
    turning = not memory.went_up and now_s - memory.changed_s < limits.dwell_s
    if state.replicas < least:
        return least
    if turning or pool.usage(state.replicas) <= limits.high:
        return state.replicas
    return max(state.replicas, min(pool.needs(limits.high), limits.max_replicas))


def _urgency(pool: _Pool, limits: Limits) -> tuple[int, float, str]:
    """Parked pools that are invoked first, then those below the least number, then the hottest."""
    rank = 0 if pool.target == 0 else 1 if pool.target < limits.min_replicas else 2
    return rank, -pool.usage(pool.target), pool.state.name


def _why(pool: _Pool, limits: Limits, wanted: int) -> tuple[str, str]:
    replicas = pool.state.replicas
    if replicas == 0:
        return INVOKED, f"it was parked and is invoked; {pool.state.waiting} tokens wait for it"
    if replicas < limits.min_replicas and pool.usage(replicas) <= limits.high:
        return BOUNDS, f"{_replicas(limits.min_replicas)} are the least that a pool may have"
    used = f"{pool.load:.0f} pairs/s are {pool.usage(replicas):.0%} of its capacity"
    return HOT, f"{used}, more than {limits.high:.0%}; it needs {_replicas(wanted)}"


def _yielded(
    claimant: _Pool, pools: list[_Pool], wanted: Mapping[int, int], limits: Limits, now_s: float, lacking: int
) -> int:
    """Bytes that cooler pools give up for a hot one: a replica each, the coolest first, and nothing if it is not enough.

    A pool yields only if it stays below `high`, or below what the other one will then be at: the memory would not be
    asked back.
    """
    then = claimant.usage(claimant.target + 1)
    donors = [
        pool
        for pool in pools
        if pool.target == pool.state.replicas == wanted[pool.number]
        and pool.target > max(1, limits.min_replicas)
        and _rested(pool, limits, now_s)
        and pool.usage(pool.target - 1) <= max(limits.high, then)
    ]
    donors.sort(key=lambda pool: (pool.usage(pool.target - 1), pool.state.name))
    given, chosen = 0, []
    for pool in donors:
        if given >= lacking:
            break
        given += pool.bytes
        chosen.append(pool)
    if given < lacking:
        return 0
    for pool in chosen:
        reason = f"{pool.usage(pool.target):.0%} of its capacity is used; pool {claimant.state.name} is hotter and lacks memory"
        pool.to(pool.target - 1, YIELDS, reason)
    return given


def _rearranged(snapshot: Snapshot, now_s: float, budget: int, balance: Balance) -> Rearrangement | None:
    """A better placement, if the present one is uneven."""
    placement, limits = snapshot.placement, snapshot.limits
    per_s = snapshot.per_s if snapshot.steady_per_s is None else snapshot.steady_per_s
    replicas = np.array([pool.replicas for pool in snapshot.pools], np.float64)
    loads = replica_loads(placement, per_s, replicas)[replicas > 0]
    means = per_s.sum(axis=1) / max(1.0, replicas.sum())
    busy = means > 0
    slots = int(placement[:, 0].sum(axis=1).max(initial=0))
    even = bool((placement.sum(axis=2) == slots).all())
    if not even or not busy.any() or (loads.max(axis=0)[busy] / means[busy]).mean() <= limits.uneven:
        return None
    target = balanced(per_s, slots, len(snapshot.pools), balance)
    resting = [pair for pair, at_s in snapshot.memory.moved.items() if now_s - at_s < limits.dwell_s]
    found = rearrange(placement, target, per_s, replicas, budget, resting)
    return found if found.moves else None


def _remembered(
    snapshot: Snapshot, pools: list[_Pool], rearrangement: Rearrangement | None, spent: int, now_s: float
) -> Memory:
    limits, before = snapshot.limits, snapshot.memory
    loaded = tuple(one for one in before.loaded if now_s - one[0] < limits.interval_s)
    moved = {pair: at_s for pair, at_s in before.moved.items() if now_s - at_s < limits.dwell_s}
    for move in () if rearrangement is None else rearrangement.moves:
        moved[move.layer, move.expert] = moved[move.layer, move.instead_of] = now_s
    kept = {}
    for pool in pools:
        memory, change = pool.memory, pool.target - pool.state.replicas
        kept[pool.state.name] = replace(memory, changed_s=now_s, went_up=change > 0) if change else memory
    return Memory(MappingProxyType(kept), loaded + (((now_s, spent),) if spent else ()), MappingProxyType(moved))


def _replicas(count: int) -> str:
    return f"{count} replica" + ("" if count == 1 else "s")
