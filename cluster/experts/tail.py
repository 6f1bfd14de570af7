"""Latency of requests by how many of a model's experts they touched: the rare wide route stands apart."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

WIDTHS: Final = (0.25, 0.5, 0.75, 0.9, 1.0)
"""Upper ends of the classes of width: the share of all pairs of layer and expert that a request used, 0 to 1."""

RARE_SHARE: Final = 0.05
"""A class with fewer of the requests than this is rare."""


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Exact ones of the requests in the window, between two of them by linear interpolation."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class TailRow:
    """The requests of one class of width."""

    name: str
    """For example `le_0.25`; see `width_class`."""
    above: float
    """Their widths lie above this, 0 to 1; in the first class also on it."""
    to: float
    """And up to this."""
    requests: int
    share: float
    """Of the requests in the window, 0 to 1."""
    distinct: float
    """Pairs of layer and expert that they used, median; 0 without requests."""
    seconds: Quantiles | None
    """From start to end; None: there are no requests."""
    seconds_per_token: Quantiles | None
    """By completion tokens; None: no request had any."""

    @property
    def rare(self) -> bool:
        """Whether some requests take this route, but few."""
        return 0 < self.share < RARE_SHARE


@dataclass(frozen=True, slots=True)
class TailTable:
    """The requests in the window, by class of width."""

    rows: tuple[TailRow, ...]
    """All classes, narrow ones first."""
    requests: int
    since_s: float | None
    """When the oldest of them ended, on the caller's clock; None: there is none."""

    @property
    def rare(self) -> tuple[TailRow, ...]:
        """Classes that are rare."""
        return tuple(row for row in self.rows if row.rare)


class TailMonitor:
    """The last `maxlen` requests of one model."""

    def __init__(self, maxlen: int = 2000) -> None:
        self._ended: deque[tuple[float, float, float, float, float]] = deque(maxlen=maxlen)

    def add(self, width: float, distinct: int, seconds: float, tokens: int, at_s: float) -> None:
        """A request ended at `at_s` after `seconds`, with so many completion tokens; `width` is 0 to 1."""
        self._ended.append((_class(width), distinct, seconds, tokens, at_s))

    def table(self) -> TailTable:
        """The window as it is now."""
        ended = np.array(self._ended, np.float64).reshape(-1, 5)
        rows = tuple(_row(index, ended[ended[:, 0] == index], len(ended)) for index in range(len(WIDTHS)))
        return TailTable(rows, len(ended), float(ended[:, 4].min()) if len(ended) else None)


def width_class(width: float) -> str:
    """Name of the class that a width of 0 to 1 falls into, as metrics show it."""
    return _name(_class(width))


def _class(width: float) -> int:
    return min(bisect_left(WIDTHS, width), len(WIDTHS) - 1)


def _name(index: int) -> str:
    return f"le_{WIDTHS[index]:g}"


def _row(index: int, ended: npt.NDArray[np.float64], requests: int) -> TailRow:
    distinct, seconds, tokens = ended[:, 1], ended[:, 2], ended[:, 3]
    some = tokens > 0
    return TailRow(
        name=_name(index),
        above=WIDTHS[index - 1] if index else 0.0,
        to=WIDTHS[index],
        requests=len(ended),
        share=len(ended) / requests if requests else 0.0,
        distinct=float(np.median(distinct)) if len(ended) else 0.0,
        seconds=_quantiles(seconds),
        seconds_per_token=_quantiles(seconds[some] / tokens[some]),
    )


def _quantiles(values: npt.NDArray[np.float64]) -> Quantiles | None:
    if not len(values):
        return None
    return Quantiles(*(float(value) for value in np.quantile(values, (0.5, 0.95, 0.99))))
