"""How long a step of a trunk takes when trunks share replicas of pools: an open queue at each replica, closed by the trunks."""

from __future__ import annotations

from typing import Final

import numpy as np

from cluster.experts.placement import Placement, Reals, replica_loads
from loadtests.expert_scale.scene import Scene

_LONGEST_S: Final = 100.0
_HALVINGS: Final = 40


def step_s(scene: Scene, placement: Placement, replicas: Reals, rows: Reals, trunks: int) -> float:
    """Seconds of a step in which `trunks` trunks with batches like `rows` (layers, experts) share these pools.

    A trunk goes through the layers one after the other, and a layer ends with its slowest replica:

        step = sum over layers of (trunk + hand-over + max over replicas of (wait + service))
        service = fixed + rows of that layer at that replica * row, 0 without rows

    Rows of a pair spread evenly over all replicas that hold it. A replica serves the batches of the other trunks, too, in
    the order in which they come; its mean wait is that of an M/G/1 queue (Pollaczek-Khinchine): arrivals * mean squared
    service / 2 / (1 - usage), with (trunks - 1) batches of every layer in each step. Shorter steps mean more arrivals, so the
    step is the fixed point: the right side falls as the step grows, and bisection finds it. Above it all replicas keep
    up: trunks that share a busy replica slow down, they do not lose tokens.
    """
    alive = replicas > 0
    at_replica = replica_loads(placement, rows, replicas)[alive]
    service = np.where(at_replica > 0, scene.fixed_s + at_replica * scene.row_s, 0.0)
    base = scene.shape.layers * (scene.trunk_s + scene.hand_over_s)
    busy, squared = service.sum(axis=1) * (trunks - 1), (service**2).sum(axis=1) * (trunks - 1)
    low, high = max(float(busy.max()), base), _LONGEST_S
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        wait = squared / (2 * np.maximum(middle - busy, 1e-12))
        if base + float((service + wait[:, None]).max(axis=0).sum()) > middle:
            low = middle
        else:
            high = middle
    return high
