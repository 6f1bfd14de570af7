"""What is known of the expert pools of one model, and the decisions on it: replicas, and which experts live together.

No clocks, no I/O: reports come in with their time, decisions go out. Times are seconds on any steady clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from cluster.config.experts import ExpertsConfig
from cluster.config.pools import PoolsConfig
from cluster.experts.heat import HeatMeter
from cluster.experts.load import Counts, ExpertShape
from cluster.experts.placement import Balance, Placement, Reals, round_robin
from cluster.experts.pools import Holding
from cluster.experts.replication import decide
from cluster.experts.replication_state import Decision, Limits, Memory, PoolState, Snapshot

SILENT_S: Final = 5.0
"""Seconds without a report after which a replica counts as gone; it is back with its next report."""
QUIET_S: Final = 2.0
"""Seconds without a report after which a replica is not said to answer, though trunks still know of it."""
ASKED_S: Final = 1.0
"""Seconds for which tokens that wait for a parked pool count as waiting."""
LOADS_S: Final = 10.0
_SMALLEST_S: Final = 1e-3
_UNKNOWN_CAPACITY: Final = 1e15


@dataclass(frozen=True, slots=True)
class Report:
    """What one replica of a pool tells of itself."""

    pool: str
    replica: str
    node: str
    unix: str
    """Address on its own node; empty: none."""
    tcp: str
    """Address for other nodes."""
    holds: Holding
    tokens: Counts
    """Pairs of token and expert that it computed since it started, (layers, experts)."""
    busy_s: float
    """Seconds that it computed since then."""
    queue_rows: int
    weight_bytes: int
    overhead_bytes: int


@dataclass(slots=True)
class Known:
    """A replica, as it was told of last."""

    report: Report
    at_s: float
    pairs_per_s: float = 0.0
    leaving: bool = False


@dataclass(slots=True)
class _Pool:
    target: int
    capacity: float = _UNKNOWN_CAPACITY
    asked_s: float = -float("inf")
    last_token_s: float = -float("inf")


@dataclass(slots=True)
class PoolBooks:
    """Of one model. `pair_bytes`: weights of one pair of layer and expert."""

    config: PoolsConfig
    shape: ExpertShape
    pair_bytes: int
    names: tuple[str, ...]
    placement: Placement = field(init=False)
    """What each pool is to hold, (pools, layers, experts)."""
    known: dict[str, Known] = field(default_factory=dict)
    _pools: dict[str, _Pool] = field(init=False)
    _meter: HeatMeter = field(init=False)
    _steady: HeatMeter = field(init=False)
    _memory: Memory = field(default_factory=Memory)

    def __post_init__(self) -> None:
        self.placement = round_robin(self.shape.layers, self.shape.experts, len(self.names))
        self._pools = {name: _Pool(self.config.min) for name in self.names}
        self._meter = HeatMeter(self.shape, ExpertsConfig(half_life_s=self.config.half_life_s))
        self._steady = HeatMeter(self.shape, ExpertsConfig(half_life_s=self.config.steady_half_life_s))

    @property
    def memory_bytes(self) -> int:
        """That the weights of all replicas may take."""
        if self.config.memory_bytes is not None:
            return self.config.memory_bytes
        return self.config.max * int(self.placement.sum()) * self.pair_bytes

    def target(self, pool: str) -> int:
        """Replicas that a pool is to have."""
        return self._pools[pool].target

    def capacity(self, pool: str) -> float:
        """Pairs a second that one of its replicas computes; 0: not known yet."""
        known = self._pools[pool].capacity
        return 0.0 if known == _UNKNOWN_CAPACITY else known

    def found(self, pool: str, replicas: int) -> None:
        """A pool is to have so many replicas already."""
        self._pools[pool].target = replicas

    def take(self, report: Report, at_s: float) -> None:
        """Take in a report. Raises `ValueError` for one of another model, or of a pool that there is not."""
        if report.pool not in self._pools:
            raise ValueError(f"there is no pool {report.pool!r}")
        for meter in (self._meter, self._steady):
            meter.add(report.replica, report.tokens, at_s)
        before, pool = self.known.get(report.replica), self._pools[report.pool]
        entry = Known(report, at_s)
        if before is not None:
            entry.leaving = before.leaving
            pairs = int(report.tokens.sum() - before.report.tokens.sum())
            entry.pairs_per_s = max(0, pairs) / max(at_s - before.at_s, _SMALLEST_S)
            if pairs > 0:
                pool.last_token_s = at_s
                self._measure(pool, pairs, report.busy_s - before.report.busy_s)
        elif pool.last_token_s == -float("inf"):
            # A pool that nobody has used yet is as fresh as its first replica, not as old as the world.
            pool.last_token_s = at_s
        self.known[report.replica] = entry

    def _measure(self, pool: _Pool, pairs: int, busy_s: float) -> None:
        if self.config.quota_pairs_per_s is not None:
            pool.capacity = self.config.quota_pairs_per_s
        elif busy_s > _SMALLEST_S:
            now = pairs / busy_s
            pool.capacity = now if pool.capacity == _UNKNOWN_CAPACITY else 0.8 * pool.capacity + 0.2 * now

    def leave(self, replica: str) -> bool:
        """A replica is about to stop: nothing is to be sent to it any more, unless its pool then had none and is to have some.

        Returns whether that is so.
        """
        known = self.known.get(replica)
        if known is None:
            return True
        pool = known.report.pool
        goes = len(self.serving(pool)) > 1 or self._pools[pool].target == 0
        known.leaving = known.leaving or goes
        return known.leaving

    def asked(self, pool: str, at_s: float) -> None:
        """Tokens wait for a parked pool."""
        if pool in self._pools:
            self._pools[pool].asked_s = self._pools[pool].last_token_s = at_s

    def forget_silent(self, now_s: float) -> None:
        """Drop replicas that told nothing for `SILENT_S`."""
        for name in [name for name, one in self.known.items() if now_s - one.at_s > SILENT_S]:
            del self.known[name]
            for meter in (self._meter, self._steady):
                meter.forget(name)

    def serving(self, pool: str) -> list[Known]:
        """Replicas of a pool that trunks may send to, by name."""
        found = [one for one in self.known.values() if one.report.pool == pool and not one.leaving]
        return sorted(found, key=lambda one: one.report.replica)

    def answering(self, pool: str, now_s: float) -> list[Known]:
        """Those of `serving` that have told something lately."""
        return [one for one in self.serving(pool) if now_s - one.at_s <= QUIET_S]

    def per_s(self, now_s: float) -> Reals:
        """Pairs a second by layer and expert, (layers, experts)."""
        return self._meter.heat(now_s).per_s

    def pool_per_s(self, now_s: float) -> Mapping[str, float]:
        """Pairs a second that come for the experts of each pool."""
        from cluster.experts.replication import pool_loads

        replicas = [self._pools[name].target for name in self.names]
        loads = pool_loads(self.placement, self.per_s(now_s), replicas)
        return dict(zip(self.names, loads.tolist(), strict=True))

    def decide(self, now_s: float, balance: Balance | None) -> Decision:
        """What is to change now; remembered as done. `balance` as in `replication.decide`."""
        decision = decide(self._snapshot(now_s), now_s, balance if self._busy(now_s) else None)
        self._memory = decision.memory
        for change in decision.changes:
            self._pools[change.pool].target = change.after
        return decision

    def _busy(self, now_s: float) -> bool:
        """Whether some pool is used by more than `low`."""
        per_s = self.pool_per_s(now_s)
        return any(
            per_s[name] > self.config.low * pool.capacity * max(1, pool.target) for name, pool in self._pools.items()
        )

    def _snapshot(self, now_s: float) -> Snapshot:
        states = []
        for name in self.names:
            pool = self._pools[name]
            held = sum(one.report.pool == name for one in self.known.values())
            waiting = int(now_s - pool.asked_s <= ASKED_S)
            states.append(
                PoolState(name, pool.target, held, pool.capacity, self.pair_bytes, waiting, pool.last_token_s)
            )
        steady = self._steady.heat(now_s).per_s
        return Snapshot(self.per_s(now_s), self.placement, tuple(states), self._limits(), self._memory, steady)

    def _limits(self) -> Limits:
        config = self.config
        limits = Limits(
            memory_bytes=self.memory_bytes,
            loads=2 * self.shape.layers * self.shape.experts if config.loads is None else config.loads,
            interval_s=LOADS_S,
            dwell_s=config.dwell_s,
            min_replicas=config.min,
            max_replicas=config.max,
            high=config.high,
            low=config.low,
            idle_s=config.idle_s,
        )
        return limits if config.uneven is None else replace(limits, uneven=config.uneven)


def holding_of(placement: Placement, pool: int, layers: Sequence[int]) -> dict[int, frozenset[int]]:
    """What a pool holds by a placement (pools, layers, experts); `layers` are the model's own numbers of those with experts."""
    held = {}
    for number, layer in enumerate(layers):
        experts = np.flatnonzero(placement[pool, number])
        if experts.size:
            held[layer] = frozenset(experts.tolist())
    return held


def one_home(held: Placement) -> Placement:
    """A placement in which each pair has one home, out of what pools hold; as even as that allows. A pair without one goes in turn.

    (pools, layers, experts), both.
    """
    home = np.zeros_like(held)
    fallback = round_robin(held.shape[1], held.shape[2], held.shape[0])
    for layer in range(held.shape[1]):
        # Those with the least choice first.
        for expert in np.argsort(held[:, layer].sum(axis=0), kind="stable").tolist():
            able = np.flatnonzero(held[:, layer, expert])
            pool = min(able.tolist(), key=lambda one: (int(home[one, layer].sum()), one), default=None)
            home[int(np.argmax(fallback[:, layer, expert])) if pool is None else pool, layer, expert] = True
    return home


def placement_of(holdings: Sequence[Holding | None], layers: Sequence[int], experts: int) -> Placement:
    """What pools hold as a placement; None: a pool that nothing is known of, so it has what the others lack."""
    held = np.zeros((len(holdings), len(layers), experts), np.bool_)
    for pool, holding in enumerate(holdings):
        for number, layer in enumerate(layers):
            if holding is not None:
                held[pool, number, sorted(holding.get(layer, ()))] = True
    lacking = ~held.any(axis=0)
    unknown = [pool for pool, holding in enumerate(holdings) if holding is None]
    for turn, pool in enumerate(unknown):
        for number, expert in np.argwhere(lacking)[turn :: len(unknown)]:
            held[pool, number, expert] = True
    return held


def includes(holding: Holding, other: Holding) -> bool:
    """Whether a holding has all of another one."""
    return all(experts <= holding.get(layer, frozenset()) for layer, experts in other.items())
