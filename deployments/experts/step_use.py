"""What pools did for each row of one step of an engine."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_FIRST_SLOTS = 8


@dataclass(frozen=True, slots=True)
class RangeUse:
    """What pools did for some rows of a step that follow each other."""

    pairs: dict[tuple[str, str], int]
    """Pairs of row and expert, over all layers, by names of pool and replica."""
    resent_rows: int
    degraded_rows: int
    """Rows times layers in which other experts stood in."""


class StepUse:
    """Counts of one step, which the engine's thread fills layer by layer. Rows stay the same from layer to layer."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.begun_s = time.time()
        self.ended_s = self.begun_s
        """Of the last layer that ended; both are seconds since 1970."""
        self.wait_s = 0.0
        """Seconds in which the engine waited for pools."""
        self.resent: dict[int, int] = {}
        """Row to layers in which it was sent again."""
        self.degraded: dict[int, int] = {}
        """Row to layers in which other experts stood in."""
        self._places: dict[tuple[str, str], int] = {}
        self._pairs = np.zeros((_FIRST_SLOTS, rows), dtype=np.int64)

    def counts(self, pool: str, replica: str) -> npt.NDArray[np.int64]:
        """Pairs by row that this replica computed; to be counted up."""
        place = self._places.setdefault((pool, replica), len(self._places))
        if place == len(self._pairs):
            self._pairs = np.concatenate([self._pairs, np.zeros_like(self._pairs)])
        row: npt.NDArray[np.int64] = self._pairs[place]
        return row

    def again(self, rows: npt.NDArray[np.int64]) -> None:
        """These rows of a layer are sent once more."""
        for row in rows.tolist():
            self.resent[row] = self.resent.get(row, 0) + 1

    def by_range(self, starts: list[int]) -> list[RangeUse]:
        """For rows that belong together: `starts` has the first row of each range, then the end of the last one.

        Ranges may be empty. Rows beyond those of the step count for none.
        """
        ends = np.minimum(np.asarray(starts), self.rows)
        sums = np.concatenate(
            [np.zeros((len(self._places), 1), dtype=np.int64), self._counted().cumsum(axis=1)], axis=1
        )
        # One line of the table for each range.
        table = (sums[:, ends[1:]] - sums[:, ends[:-1]]).T.tolist()
        found = []
        for pairs, start, end in zip(table, starts, starts[1:], strict=False):
            named = {name: count for name, count in zip(self._places, pairs, strict=True) if count}
            found.append(RangeUse(named, _within(self.resent, start, end), _within(self.degraded, start, end)))
        return found

    def _counted(self) -> npt.NDArray[np.int64]:
        return self._pairs[: len(self._places)]


def _within(counts: dict[int, int], start: int, end: int) -> int:
    return sum(count for row, count in counts.items() if start <= row < end) if counts else 0
