"""What `GET /v1/experts` tells of pools of experts."""

from __future__ import annotations

import msgspec

from cluster.experts.pools_view import ChangeView, PoolView


class PoolsTold(msgspec.Struct, frozen=True):
    """The pools of one model; with `unavailable` set, nothing else is known."""

    unavailable: str = ""
    """Why it is not known how they stand; empty: it is."""
    version: int = 0
    layers: int = 0
    experts: int = 0
    memory_bytes: int = 0
    pools: tuple[PoolView, ...] = ()
    changes: tuple[ChangeView, ...] = ()
    """The newest last."""
    moved_pairs: int = 0
    age_s: float = 0.0
    stale: bool = False
    failed: str | None = None
    """Why the last question of the ingress had no answer; None: it had one."""
    now_s: float = 0.0
    """When the ingress told it, seconds since 1970 by its clock: what times of changes are held against."""
