"""What a decision on replicas of expert pools is taken on, and what it says; see `replication`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from cluster.experts.placement import Placement, Reals, Rearrangement

HOT: Final = "hot"
COLD: Final = "cold"
IDLE: Final = "idle"
INVOKED: Final = "invoked"
BOUNDS: Final = "bounds"
YIELDS: Final = "yields"

LOADS: Final = "loads"
MEMORY: Final = "memory"

_NEVER: Final = -math.inf


@dataclass(frozen=True, slots=True)
class Limits:
    """What the policy keeps to."""

    memory_bytes: int
    """For the weights of all replicas of all pools, those included that are just starting or stopping."""
    loads: int
    """Pairs of layer and expert whose weights may be loaded within `interval_s`, each replica counted."""
    interval_s: float = 10.0
    dwell_s: float = 30.0
    """Seconds between two changes of a pool in opposite directions, and for which it must be cold before it loses replicas."""
    min_replicas: int = 1
    """Of a pool that is not parked."""
    max_replicas: int = 8
    high: float = 0.8
    """Load over capacity above which a pool gains replicas."""
    low: float = 0.3
    """Load over capacity below which it loses some; well below `high`."""
    idle_s: float | None = None
    """Seconds without a token after which a pool is parked; None: none is."""
    uneven: float = 1.15
    """Largest load of a replica in a layer over the mean one, averaged over layers, above which pairs are moved."""


@dataclass(frozen=True, slots=True)
class PoolState:
    """One pool as it is."""

    name: str
    replicas: int
    """As many as were asked for."""
    held: int
    """Replicas that hold memory: those that start or stop included."""
    capacity: float
    """Tokens a second that one replica computes, each counted for each of its pairs."""
    pair_bytes: int
    """Weights of one pair."""
    waiting: int = 0
    """Tokens that wait for one of its experts and cannot go anywhere else."""
    last_token_s: float = _NEVER
    """When a token last went to one of its experts, or wanted to."""


@dataclass(frozen=True, slots=True)
class PoolMemory:
    """What a decision must know of those before it, for one pool."""

    cold_since_s: float | None = None
    """Since when its load is below `low`; None: it is not."""
    changed_s: float = _NEVER
    went_up: bool = False
    """Whether that change added replicas."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What a decision must know of those before it."""

    pools: Mapping[str, PoolMemory] = field(default_factory=lambda: MappingProxyType({}))
    loaded: tuple[tuple[float, int], ...] = ()
    """When pairs were loaded and how many, over the last `interval_s`."""
    moved: Mapping[tuple[int, int], float] = field(default_factory=lambda: MappingProxyType({}))
    """When a pair (layer, expert) was moved, over the last `dwell_s`."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a decision is taken on."""

    per_s: Reals
    """Tokens a second by layer and expert, (layers, experts); see `Heat.per_s`."""
    placement: Placement
    """What the pools hold, in their order: (pools, layers, experts)."""
    pools: tuple[PoolState, ...]
    limits: Limits
    memory: Memory = field(default_factory=Memory)
    steady_per_s: Reals | None = None
    """The same over a longer time, by which experts are placed: moves are dear, and bursts pass. None: `per_s`."""


@dataclass(frozen=True, slots=True)
class Change:
    """Another number of replicas for one pool."""

    pool: str
    before: int
    after: int
    cause: str
    """A label: `hot`, `cold`, `idle`, `invoked`, `bounds` or `yields`."""
    reason: str
    """A sentence for people, with the figures."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """A pool that is to have more replicas than it can get now."""

    pool: str
    lacks: str
    """`loads` or `memory`: which of the limits is in the way."""
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to change, by pool in the order of the snapshot."""

    changes: tuple[Change, ...]
    blocked: tuple[Blocked, ...]
    rearrangement: Rearrangement | None
    """Another placement; None: it stays."""
    memory: Memory
    """For the snapshot of the next decision."""
