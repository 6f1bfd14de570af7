"""Which pool computes each expert of a layer, for the replicas that can be reached at the moment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cluster.experts.dispatch import place
from cluster.experts.pools import PoolMap

NOBODY = -1
Numbers = npt.NDArray[np.int64]


class Routes:
    """A table by layer and expert, made anew when a replica comes or goes."""

    def __init__(self, pool_map: PoolMap, alive: Sequence[bool], experts: int) -> None:
        """`alive` says of each pool whether any of its replicas can be reached."""
        self._experts = experts
        self._pool_of: dict[int, Numbers] = {}
        self._holders: dict[int, dict[int, list[int]]] = {}
        self.complete = True
        """Every expert of every layer of the map can be reached."""
        for layer in sorted({layer for pool in pool_map.pools for layer in pool.holds}):
            holders: dict[int, list[int]] = {}
            for number, pool in enumerate(pool_map.pools):
                if alive[number]:
                    for expert in pool.holds.get(layer, ()):
                        holders.setdefault(expert, []).append(number)
            table = np.full(experts, NOBODY, dtype=np.int64)
            for expert, pools in holders.items():
                table[expert] = pools[0]
            self._pool_of[layer] = table
            self.complete &= len(holders) == experts
            if any(len(pools) > 1 for pools in holders.values()):
                self._holders[layer] = holders

    def pools(self, layer: int, experts: npt.NDArray[np.int32]) -> Numbers:
        """The pool for each of the `experts` (a flat list of pairs), or `NOBODY`."""
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
        """Whether anybody can compute it."""
        table = self._pool_of.get(layer)
        return table is not None and int(table[expert]) != NOBODY
