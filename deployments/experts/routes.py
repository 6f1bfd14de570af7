"""Which pool computes each expert of a layer, for the replicas that can be reached at the moment."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final

import numpy as np
import numpy.typing as npt

from cluster.experts.dispatch import place
from cluster.experts.pools import PoolMap

NOBODY: Final = -1
"""In place of a pool: no pool holds it, or the replicas of those that do cannot be reached."""
Numbers = npt.NDArray[np.int64]


class PoolState(Enum):
    """Whether a pool can be asked."""

    ALIVE = "a replica can be reached"
    PARKED = "it has no replica, and gets one when it is asked for"
    DEAD = "none of its replicas can be reached"


class Routes:
    """A table by layer and expert, made anew when a replica comes or goes."""

    def __init__(self, pool_map: PoolMap, states: Sequence[PoolState], experts: int) -> None:
        """`states` says of each pool whether it can be asked. An expert of a parked pool counts if nobody alive has it."""
        self._experts = experts
        self._pool_of: dict[int, Numbers] = {}
        self._holders: dict[int, dict[int, list[int]]] = {}
        self._parked = {n for n, state in enumerate(states) if state is PoolState.PARKED}
        for layer in sorted({layer for pool in pool_map.pools for layer in pool.holds}):
            table = np.full(experts, NOBODY, dtype=np.int64)
            for number in self._parked:
                table[list(pool_map.pools[number].holds.get(layer, ()))] = _code(number)
            holders: dict[int, list[int]] = {}
            for number, pool in enumerate(pool_map.pools):
                if states[number] is PoolState.ALIVE:
                    for expert in pool.holds.get(layer, ()):
                        holders.setdefault(expert, []).append(number)
            for expert, pools in holders.items():
                table[expert] = pools[0]
            self._pool_of[layer] = table
            if any(len(pools) > 1 for pools in holders.values()):
                self._holders[layer] = holders

    def pools(self, layer: int, experts: npt.NDArray[np.int32]) -> Numbers:
        """The pool for each of the `experts` (a flat list of pairs); less than 0: see `parked_pools` and `NOBODY`."""
        table, holders = self._pool_of.get(layer), self._holders.get(layer)
        if table is None:
            return np.full(len(experts), NOBODY, dtype=np.int64)
        if holders is not None:
            counts = np.bincount(experts, minlength=self._experts)
            used = {int(expert): int(counts[expert]) for expert in counts.nonzero()[0]}
            table = table.copy()
            for expert, pool in place(used, holders).items():
                table[expert] = pool
        return table[experts]

    def reaches(self, layer: int, expert: int) -> bool:
        """Whether anybody can compute it now."""
        table = self._pool_of.get(layer)
        return table is not None and int(table[expert]) >= 0

    def reaches_any(self, layer: int) -> bool:
        """Whether anybody can compute any expert of the layer now."""
        table = self._pool_of.get(layer)
        return table is not None and int(table.max()) >= 0

    def out_of_reach(self) -> list[tuple[int, int]]:
        """Pairs of layer and expert that nobody can compute, now or when it is woken."""
        return [(n, int(expert)) for n, table in self._pool_of.items() for expert in (table == NOBODY).nonzero()[0]]


def parked_pools(pools: Numbers) -> set[int]:
    """The parked pools among those that `Routes.pools` gave."""
    return {_code(code) for code in set(pools[pools < NOBODY].tolist())}


def _code(number: int) -> int:
    """Number of a parked pool to its sign in the table, and back."""
    return NOBODY - 1 - number
