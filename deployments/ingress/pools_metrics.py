"""Metrics of expert pools: how they stand, and what requests had of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.metrics_core import Metric as Family

from cluster.experts.pool_use import PoolUse
from cluster.experts.pools_view import PoolsView, PoolView
from cluster.experts.replication_state import BOUNDS, COLD, HOT, IDLE, INVOKED, YIELDS
from cluster.telemetry import metric_table
from deployments.telemetry.metrics import OTHER
from deployments.telemetry.series import Counts, number_family

MAX_SERIES: Final = 256
"""Pools that are told of by name, of all models together; the rest of each model is one pool `other`."""

_CAUSES: Final = frozenset({HOT, COLD, IDLE, INVOKED, BOUNDS, YIELDS})


@dataclass(slots=True)
class _Figures:
    """Of one pool, or of several together."""

    wanted: int = 0
    answering: int = 0
    pairs_per_s: float = 0.0
    capacity: float = 0.0
    """Pairs a second of all answering replicas."""
    weight_bytes: int = 0
    overhead_bytes: int = 0

    def add(self, pool: PoolView) -> None:
        self.wanted += pool.target
        self.answering += len(pool.replicas)
        self.pairs_per_s += pool.pairs_per_s
        self.capacity += pool.capacity_pairs_per_s * len(pool.replicas)
        self.weight_bytes += sum(replica.weight_bytes for replica in pool.replicas)
        self.overhead_bytes += sum(replica.overhead_bytes for replica in pool.replicas)


def pool_families(views: Mapping[str, PoolsView]) -> Iterator[Family]:
    """How the pools of all models stand, by the views of each."""
    figures: dict[tuple[str, ...], _Figures] = {}
    named = 0
    for model, view in views.items():
        for pool in view.pools:
            named += 1
            labels = model, pool.name if named <= MAX_SERIES else OTHER
            figures.setdefault(labels, _Figures()).add(pool)
    each = figures.items()
    yield number_family(metric_table.EXPERT_POOL_WANTED, ((labels, one.wanted) for labels, one in each))
    yield number_family(metric_table.EXPERT_POOL_REPLICAS, ((labels, one.answering) for labels, one in each))
    yield number_family(metric_table.EXPERT_POOL_PAIRS, ((labels, one.pairs_per_s) for labels, one in each))
    loads = ((labels, one.pairs_per_s / one.capacity) for labels, one in each if one.capacity > 0)
    yield number_family(metric_table.EXPERT_POOL_LOAD, loads)
    yield number_family(metric_table.EXPERT_POOL_WEIGHT_BYTES, ((labels, one.weight_bytes) for labels, one in each))
    yield number_family(metric_table.EXPERT_POOL_OVERHEAD_BYTES, ((labels, one.overhead_bytes) for labels, one in each))


@dataclass(slots=True)
class PoolCounts:
    """What is counted since this ingress began."""

    _changes: Counts = field(default_factory=lambda: Counts.empty(metric_table.EXPERT_POOL_CHANGES))
    _degraded: Counts = field(default_factory=lambda: Counts.empty(metric_table.EXPERT_ROWS_DEGRADED))
    _resent: Counts = field(default_factory=lambda: Counts.empty(metric_table.EXPERT_ROWS_RESENT))
    _wait: Counts = field(default_factory=lambda: Counts.empty(metric_table.EXPERT_POOL_WAIT))

    def changed(self, model: str, cause: str) -> None:
        """A pool is to have another number of replicas."""
        self._changes.add((model, cause if cause in _CAUSES else OTHER))

    def used(self, model: str, use: PoolUse) -> None:
        """An answer had this of pools."""
        self._degraded.add((model,), use.degraded_rows)
        self._resent.add((model,), use.resent_rows)
        self._wait.add((model,), use.wait_s)

    def keep(self, models: Collection[str]) -> None:
        """Forget all other models."""
        for counts in self._all():
            for labels in [labels for labels in counts.series if labels[0] not in models]:
                del counts.series[labels]

    def families(self) -> Iterator[Family]:
        """All of it, for Prometheus."""
        return (counts.family() for counts in self._all())

    def _all(self) -> tuple[Counts, ...]:
        return self._changes, self._degraded, self._resent, self._wait
