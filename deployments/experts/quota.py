"""A pool that answers as a device of a declared speed would: how capacity is bounded and tested without such devices."""

from __future__ import annotations


class Quota:
    """When each batch is done at the earliest, by the clock of a device that computes so many pairs a second."""

    def __init__(self, pairs_per_s: float | None) -> None:
        """`pairs_per_s`: pairs of row and expert; None: as fast as it goes. Raises `ValueError` for none at all."""
        if pairs_per_s is not None and not pairs_per_s > 0:
            raise ValueError(f"a quota of {pairs_per_s} pairs a second is none")
        self.pairs_per_s = pairs_per_s
        self._free_at = 0.0

    def done_at(self, pairs: int, arrived: float) -> float:
        """The device takes a batch that arrived then, after those before it; both are seconds of one clock."""
        if self.pairs_per_s is None:
            return arrived
        self._free_at = max(self._free_at, arrived) + pairs / self.pairs_per_s
        return self._free_at
