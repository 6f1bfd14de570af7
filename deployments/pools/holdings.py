"""What each pool holds by a placement, worked out once for each placement: replicas report often, placements change seldom."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.experts.balancing import holding_of
from cluster.experts.placement import Placement
from cluster.experts.pools import Holding


class Holdings:
    """Of one model; `layers` are its own numbers of those with experts."""

    def __init__(self, layers: Sequence[int]) -> None:
        self._layers = layers
        self._known: dict[bytes, list[Holding]] = {}

    def of(self, placement: Placement) -> list[Holding]:
        """By pool, in the order of the placement."""
        key = placement.tobytes()
        if key not in self._known:
            if len(self._known) > 2:
                # A placement, the next one, and both together: others are gone.
                self._known.clear()
            self._known[key] = [holding_of(placement, pool, self._layers) for pool in range(len(placement))]
        return self._known[key]
