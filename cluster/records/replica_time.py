"""How long replicas were there, and how long of that they had nothing to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

MAX_STEP_S: Final = 5.0
"""Seconds that one look at the replicas may stand for: of a longer gap nothing is known."""

BUCKET_S: Final = 60
"""Seconds that one row of the database stands for."""


@dataclass(frozen=True, slots=True)
class ReplicaSeconds:
    """Seconds of all replicas of one model."""

    busy: float = 0.0
    """With at least one request."""
    idle: float = 0.0
    """Ready, without any."""

    def __add__(self, other: ReplicaSeconds) -> ReplicaSeconds:
        """The sum of two periods."""
        return ReplicaSeconds(self.busy + other.busy, self.idle + other.idle)


@dataclass(frozen=True, slots=True)
class ReplicaBucket:
    """What one ingress saw of one model's replicas in one minute."""

    minute: int
    """Unix time of its beginning, divided by `BUCKET_S`."""
    model: str
    seconds: ReplicaSeconds


def seconds_of(replicas: Iterable[tuple[str, int]], step_s: float) -> dict[str, ReplicaSeconds]:
    """What `step_s` seconds were for `replicas`: pairs of a model and how many requests a replica of it has."""
    counted = min(max(step_s, 0.0), MAX_STEP_S)
    total: dict[str, ReplicaSeconds] = {}
    for model, requests in replicas:
        share = ReplicaSeconds(busy=counted) if requests > 0 else ReplicaSeconds(idle=counted)
        total[model] = total.get(model, ReplicaSeconds()) + share
    return total


class ReplicaClock:
    """Adds up what one ingress sees, in all and by minute. Holds as many minutes as nobody has taken yet, at most."""

    def __init__(self, max_buckets: int = 20_000) -> None:
        self._max = max_buckets
        self._total: dict[str, ReplicaSeconds] = {}
        self._buckets: dict[tuple[int, str], ReplicaSeconds] = {}

    def add(self, replicas: Iterable[tuple[str, int]], step_s: float, now_s: float) -> None:
        """Count the `step_s` seconds up to `now_s` (Unix time)."""
        minute = int(now_s // BUCKET_S)
        for model, seconds in seconds_of(replicas, step_s).items():
            self._total[model] = self._total.get(model, ReplicaSeconds()) + seconds
            known = self._buckets.get((minute, model))
            if known is not None or len(self._buckets) < self._max:
                self._buckets[minute, model] = (known or ReplicaSeconds()) + seconds

    @property
    def total(self) -> Mapping[str, ReplicaSeconds]:
        """Since the start, by model."""
        return self._total

    def buckets(self, now_s: float) -> tuple[ReplicaBucket, ...]:
        """The minutes that are kept. Those before the one of `now_s` are whole, and not given out again."""
        minute = int(now_s // BUCKET_S)
        found = tuple(ReplicaBucket(at, model, seconds) for (at, model), seconds in self._buckets.items())
        self._buckets = {key: seconds for key, seconds in self._buckets.items() if key[0] >= minute}
        return found
