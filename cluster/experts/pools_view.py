"""How the expert pools of a model stand, for those who look at them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

MAX_CHANGES: Final = 32
"""Changes that are remembered, the newest last."""


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica of a pool that answers."""

    name: str
    node: str
    pairs: int
    """Pairs of token and expert that it computed since it started."""
    pairs_per_s: float
    """Lately."""
    queue_rows: int
    """Rows that wait in it."""
    weight_bytes: int
    overhead_bytes: int
    """Memory of its process beside the weights."""


@dataclass(frozen=True, slots=True)
class ChangeView:
    """Another number of replicas."""

    pool: str
    before: int
    after: int
    cause: str
    """`hot`, `cold`, `idle`, `invoked`, `bounds` or `yields`."""
    reason: str
    at_s: float
    """When it was decided, seconds since 1970."""
    took_s: float | None = None
    """Seconds until trunks were told of the replicas; None: not yet."""


@dataclass(frozen=True, slots=True)
class PoolView:
    """One pool."""

    name: str
    experts: int
    """Pairs of layer and expert that it holds."""
    target: int
    """Replicas that it is to have; 0: it is parked."""
    pairs_per_s: float
    """Pairs of token and expert that come for its experts."""
    capacity_pairs_per_s: float
    """What one replica can compute."""
    replicas: tuple[ReplicaView, ...] = ()
    lacks: str = ""
    """Why it has fewer replicas than it is to have; empty: it has not."""


@dataclass(frozen=True, slots=True)
class PoolsView:
    """All pools of one model."""

    version: int
    """Of the pool map that trunks work by."""
    layers: int
    experts: int
    """Routed experts of a layer."""
    memory_bytes: int
    """That weights of all replicas may take together."""
    pools: tuple[PoolView, ...] = ()
    changes: tuple[ChangeView, ...] = field(default=())
    moved_pairs: int = 0
    """Pairs that were moved between pools since the start."""
    listens: bool = False
    """Whether it was started a moment ago and has not heard of all pools yet."""
