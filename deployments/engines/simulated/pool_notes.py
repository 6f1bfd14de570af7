"""What pools did for the requests of a simulated trunk, noted step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cluster.experts.pool_use import MAX_REPLICAS_NAMED, PoolPart, PoolUse
from deployments.engines.simulated.routing import Router

_Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepUse:
    """What pools did in one step; counts are by row."""

    begun_s: float
    ended_s: float
    """Seconds since 1970."""
    wait_s: float
    pairs: Mapping[str, _Counts]
    """By pool."""
    replicas: Mapping[str, Sequence[str]]
    """By pool, those that took part."""
    resent: _Counts
    degraded: _Counts


@dataclass(slots=True, eq=False)
class RequestPools:
    """Adds up what pools did for one request."""

    router: Router
    """Tells where its tokens go."""
    _begun_s: float = 0.0
    _ended_s: float = 0.0
    _steps: int = 0
    _wait_s: float = 0.0
    _resent: int = 0
    _degraded: int = 0
    _pairs: dict[str, int] = field(default_factory=dict)
    _replicas: dict[str, dict[str, None]] = field(default_factory=dict)

    def add(self, step: StepUse, rows: _Counts) -> None:
        """It had these rows in a step."""
        self._begun_s = self._begun_s or step.begun_s
        self._ended_s = step.ended_s
        self._steps += 1
        self._wait_s += step.wait_s
        self._resent += int(step.resent[rows].sum())
        self._degraded += int(step.degraded[rows].sum())
        for pool, by_row in step.pairs.items():
            pairs = int(by_row[rows].sum())
            if pairs:
                self._pairs[pool] = self._pairs.get(pool, 0) + pairs
                named = self._replicas.setdefault(pool, {})
                for replica in step.replicas.get(pool, ()):
                    if len(named) < MAX_REPLICAS_NAMED:
                        named[replica] = None

    def use(self) -> PoolUse | None:
        """All of it; None: no step of it went to pools."""
        if not self._steps:
            return None
        parts = tuple(PoolPart(pool, pairs, tuple(self._replicas[pool])) for pool, pairs in sorted(self._pairs.items()))
        return PoolUse(self._begun_s, self._ended_s, self._steps, self._wait_s, parts, self._resent, self._degraded)


def note(step: StepUse, owners: Sequence[RequestPools]) -> None:
    """Tell the requests; `owners` has that of each row."""
    rows: dict[RequestPools, list[int]] = {}
    for row, owner in enumerate(owners):
        rows.setdefault(owner, []).append(row)
    for owner, mine in rows.items():
        owner.add(step, np.array(mine))
