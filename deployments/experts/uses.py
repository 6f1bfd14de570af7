"""What pools did for each request, gathered step by step until somebody asks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cluster.experts.pool_use import MAX_REPLICAS_NAMED, PoolPart, PoolUse
from deployments.experts.step_use import RangeUse, StepUse

MAX_NOTED: Final = 4096
"""Requests that are kept; those that pools worked for longest ago go first."""


@dataclass(slots=True)
class _Sum:
    begun_s: float
    ended_s: float
    steps: int = 0
    wait_s: float = 0.0
    pairs: dict[tuple[str, str], int] = field(default_factory=dict)
    resent_rows: int = 0
    degraded_rows: int = 0

    def add(self, step: StepUse, use: RangeUse) -> None:
        self.ended_s = step.ended_s
        self.steps += 1
        self.wait_s += step.wait_s
        for name, count in use.pairs.items():
            self.pairs[name] = self.pairs.get(name, 0) + count
        self.resent_rows += use.resent_rows
        self.degraded_rows += use.degraded_rows


class Uses:
    """By request. Whoever runs the steps notes them."""

    def __init__(self, limit: int = MAX_NOTED) -> None:
        self._limit = limit
        self._sums: OrderedDict[str, _Sum] = OrderedDict()

    def note(self, step: StepUse, requests: Sequence[str], starts: list[int]) -> None:
        """Take in a step; `starts` has the first row of each request, then the end of the last one."""
        for request, use in zip(requests, step.by_range(starts), strict=False):
            if not use.pairs and not use.degraded_rows:
                continue
            known = self._sums.pop(request, None) or _Sum(step.begun_s, step.ended_s)
            known.add(step, use)
            self._sums[request] = known
        while len(self._sums) > self._limit:
            self._sums.popitem(last=False)

    def take(self, mine: Callable[[str], bool]) -> dict[str, Any] | None:
        """The use of those requests that are `mine`, as one, and forget it; None: pools did nothing for them.

        The fields are those of `PoolUse`, in types that JSON has.
        """
        sums = [self._sums.pop(request) for request in [known for known in self._sums if mine(known)]]
        if not sums:
            return None
        return {
            "begun_s": min(one.begun_s for one in sums),
            "ended_s": max(one.ended_s for one in sums),
            "steps": sum(one.steps for one in sums),
            "wait_s": sum(one.wait_s for one in sums),
            "parts": _parts(one.pairs for one in sums),
            "resent_rows": sum(one.resent_rows for one in sums),
            "degraded_rows": sum(one.degraded_rows for one in sums),
        }


def use_from(told: Mapping[str, Any]) -> PoolUse:
    """Reads what `Uses.take` gave."""
    parts = (PoolPart(part["pool"], part["pairs"], tuple(part["replicas"])) for part in told["parts"])
    return PoolUse(
        told["begun_s"],
        told["ended_s"],
        told["steps"],
        told["wait_s"],
        tuple(parts),
        told["resent_rows"],
        told["degraded_rows"],
    )


def _parts(sums: Iterable[Mapping[tuple[str, str], int]]) -> list[dict[str, Any]]:
    pairs: dict[str, int] = {}
    replicas: dict[str, set[str]] = {}
    for one in sums:
        for (pool, replica), count in one.items():
            pairs[pool] = pairs.get(pool, 0) + count
            replicas.setdefault(pool, set()).add(replica)
    return [
        {"pool": pool, "pairs": count, "replicas": sorted(replicas[pool])[:MAX_REPLICAS_NAMED]}
        for pool, count in sorted(pairs.items())
    ]
