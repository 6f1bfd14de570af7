"""The arms of the simulation: how pools are placed and replicated while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from cluster.experts.heat import HeatMeter
from cluster.experts.load import Counts
from cluster.experts.placement import Balance, Placement, Reals, copies_of
from cluster.experts.replication import Limits, Memory, PoolState, Snapshot, decide
from loadtests.expert_scale.scene import HEAT, Scene

LOADS_PER_NODE = 30.0
"""Pairs that may be loaded within ten seconds, for each node, on average: 1.3 GB, which is 0.3 % of what its network carries."""
EVERY_S = 10.0
"""How often the placement is looked at; replicas are every second."""


class Arm(Protocol):
    """What serves the rows now, and what it does about heat."""

    name: str
    groups: int
    """Parts that share nothing: trunks and requests are dealt out over them."""

    def serving(self, at_s: float) -> tuple[Placement, Reals]:
        """The placement, and replicas by pool that are ready, (pools,), of one group."""

    def copies(self, at_s: float) -> Reals:
        """Replicas that hold each pair, of all groups: (layers, experts)."""

    def held(self, at_s: float) -> int:
        """Nodes' worth of weights in memory."""

    def observe(self, total: Counts, at_s: float) -> None:
        """Take in the rows since the start, and act."""


def in_turn(scene: Scene, pools: int) -> Placement:
    """All slots of so many pools filled with the experts in turn, the same in every layer."""
    slot = np.arange(pools * scene.slots)
    placement = np.zeros((pools, scene.shape.layers, scene.shape.experts), np.bool_)
    placement[slot % pools, :, slot % scene.shape.experts] = True
    if not (placement.sum(axis=2) == scene.slots).all():
        raise ValueError(f"{pools} pools cannot be filled in turn")
    return placement


class Still:
    """Nothing ever moves: experts in turn, every pool with as many replicas; or whole models side by side."""

    def __init__(self, scene: Scene, name: str, *, whole: bool) -> None:
        self.name = name
        self.groups = scene.copies if whole else 1
        self._copies = scene.copies
        self._scene = scene
        pools = scene.shape.experts // scene.slots
        self._placement = in_turn(scene, pools)
        self._replicas = np.full(pools, 1.0 if whole else float(scene.copies))

    def serving(self, at_s: float) -> tuple[Placement, Reals]:
        del at_s
        return self._placement, self._replicas

    def copies(self, at_s: float) -> Reals:
        del at_s
        return np.full((self._scene.shape.layers, self._scene.shape.experts), float(self._copies))

    def held(self, at_s: float) -> int:
        del at_s
        return len(self._placement) * self._copies

    def observe(self, total: Counts, at_s: float) -> None:
        """Heat changes nothing here."""


class Everywhere:
    """Every node holds every expert: what no placement can do better than, at many times the memory."""

    groups = 1

    def __init__(self, scene: Scene, name: str) -> None:
        self.name = name
        self._scene = scene
        self._placement = np.ones((1, scene.shape.layers, scene.shape.experts), np.bool_)

    def serving(self, at_s: float) -> tuple[Placement, Reals]:
        del at_s
        return self._placement, np.array([float(self._scene.nodes)])

    def copies(self, at_s: float) -> Reals:
        return copies_of(*self.serving(at_s))

    def held(self, at_s: float) -> int:
        del at_s
        return self._scene.nodes * self._scene.shape.experts // self._scene.slots

    def observe(self, total: Counts, at_s: float) -> None:
        """Heat changes nothing here."""


@dataclass(slots=True)
class _Replicas:
    """Of one pool: when each is ready, and until when those that left hold memory."""

    ready_s: list[float]
    leaving_s: list[float] = field(default_factory=list)


class Policy:
    """`HeatMeter`, `decide` and the placement, as a cluster runs them."""

    groups = 1

    def __init__(self, scene: Scene, name: str, pools: int, replicas: int, balance: Balance | None) -> None:
        self.name = name
        self.replica_loads = self.moves = self.changes = 0
        self._scene, self._balance = scene, balance
        self._placement = in_turn(scene, pools)
        self._pools = [_Replicas([0.0] * replicas) for _ in range(pools)]
        self._meter = HeatMeter(scene.shape, HEAT)
        self._memory = Memory()
        self._limits = Limits(
            memory_bytes=scene.nodes * scene.node_pairs * scene.pair_bytes,
            loads=int(LOADS_PER_NODE * scene.nodes),
            dwell_s=20.0,
            max_replicas=32,
            high=0.6,
            low=0.25,
            uneven=1.05,
        )
        self.hot: dict[tuple[int, int], float] = {}
        """Pairs that are hot, and since when."""

    def serving(self, at_s: float) -> tuple[Placement, Reals]:
        return self._placement, np.array([float(sum(at <= at_s for at in one.ready_s)) for one in self._pools])

    def copies(self, at_s: float) -> Reals:
        return copies_of(*self.serving(at_s))

    def held(self, at_s: float) -> int:
        return sum(self._held(one, at_s) for one in self._pools)

    def observe(self, total: Counts, at_s: float) -> None:
        self._meter.add("all", total, at_s)
        heat = self._meter.heat(at_s)
        self.hot = {(one.layer, one.expert): one.since_s for one in heat.hot}
        pools = tuple(
            PoolState(
                f"{number:03}",
                len(one.ready_s),
                self._held(one, at_s),
                1 / self._scene.row_s,
                self._scene.pair_bytes,
                last_token_s=at_s,
            )
            for number, one in enumerate(self._pools)
        )
        looks = at_s >= HEAT.half_life_s and at_s % EVERY_S == 0
        snapshot = Snapshot(heat.per_s, self._placement, pools, self._limits, self._memory)
        decision = decide(snapshot, at_s, self._balance if looks else None)
        self._memory = decision.memory
        for change in decision.changes:
            self._change(self._pools[int(change.pool)], change.after, at_s)
            self.changes += 1
            self.replica_loads += max(0, change.after - change.before) * self._scene.node_pairs
        if decision.rearrangement is not None:
            # Weights are on their way for less than the second that passes until they are asked for.
            self._placement = decision.rearrangement.placement
            self.moves += decision.rearrangement.loads

    def _held(self, one: _Replicas, at_s: float) -> int:
        return len(one.ready_s) + sum(until > at_s for until in one.leaving_s)

    def _change(self, one: _Replicas, wanted: int, at_s: float) -> None:
        weights_s = self._scene.node_pairs * self._scene.pair_bytes / self._scene.load_bytes_per_s
        while len(one.ready_s) < wanted:
            one.ready_s.append(at_s + self._scene.start_s + weights_s)
        # The last to have come goes first: it may not even serve yet.
        one.leaving_s = [until for until in one.leaving_s if until > at_s]
        while len(one.ready_s) > wanted:
            one.ready_s.sort()
            one.ready_s.pop()
            one.leaving_s.append(at_s + 1.0)
