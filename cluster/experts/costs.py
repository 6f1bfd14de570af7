"""What a replica of a pool needs for a batch of rows, learned from what its last batches took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MEMORY: Final = 0.98
"""Weight that a batch keeps when the next one comes: about the last fifty count."""
FIRST_FIXED_S: Final = 100e-6
FIRST_ROW_S: Final = 20e-6


@dataclass(slots=True)
class CostEstimate:
    """Seconds of a batch as a line over its rows, by least squares that forget. Neither part is ever negative."""

    fixed_s: float = FIRST_FIXED_S
    row_s: float = FIRST_ROW_S
    _weight: float = 0.0
    _rows: float = 0.0
    _seconds: float = 0.0
    _squares: float = 0.0
    _products: float = 0.0

    def add(self, rows: int, seconds: float) -> None:
        """Take in a batch."""
        self._weight = MEMORY * self._weight + 1
        self._rows = MEMORY * self._rows + rows
        self._seconds = MEMORY * self._seconds + seconds
        self._squares = MEMORY * self._squares + rows * rows
        self._products = MEMORY * self._products + rows * seconds
        mean_rows, mean_s = self._rows / self._weight, self._seconds / self._weight
        variance = self._squares / self._weight - mean_rows * mean_rows
        # Batches of one size tell nothing of the slope; the one known before stays, as far as the mean bears it out.
        slope = self.row_s if variance < 0.25 else (self._products / self._weight - mean_rows * mean_s) / variance
        self.row_s = min(max(slope, 0.0), mean_s / max(mean_rows, 1.0))
        self.fixed_s = max(mean_s - self.row_s * mean_rows, 0.0)
