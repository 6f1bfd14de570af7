"""What `GET /v1/experts` tells of pools, made up."""

from __future__ import annotations

from typing import Any

import msgspec

from cluster.experts.pools_view import ChangeView, PoolsView, PoolView, ReplicaView

MIB = 2**20
NOW_S = 1_800_000_000.0


def replica(name: str, weights_mib: float = 12.0, overhead_mib: float = 30.0) -> ReplicaView:
    return ReplicaView(name, "node-1", 1000, 415.0, 0, round(weights_mib * MIB), round(overhead_mib * MIB))


def pool(name: str, target: int, answering: int, **more: Any) -> PoolView:
    """A pool of 120 experts, of whose capacity of 500 pairs a second and replica some is used."""
    fields: dict[str, Any] = {"experts": 120, "pairs_per_s": 0.0, "capacity_pairs_per_s": 500.0, **more}
    return PoolView(
        name=name,
        target=target,
        replicas=tuple(replica(f"{name}-{number}") for number in range(answering)),
        **fields,
    )


def change(before: int = 1, after: int = 2, ago_s: float = 12.0, took_s: float | None = 4.1, **more: str) -> ChangeView:
    words = {"pool": "hot-0", "cause": "hot", "reason": "83% of its capacity is used", **more}
    return ChangeView(before=before, after=after, at_s=NOW_S - ago_s, took_s=took_s, **words)


def told(*pools: PoolView, changes: tuple[ChangeView, ...] = (), **more: Any) -> dict[str, Any]:
    """As the page tells it."""
    view = PoolsView(7, 30, 4, 512 * MIB, pools, changes, int(more.pop("moved_pairs", 0)))
    builtins: dict[str, Any] = msgspec.to_builtins(view)
    return {**builtins, "age_s": 0.4, "stale": False, "failed": None, "now_s": NOW_S, **more}
