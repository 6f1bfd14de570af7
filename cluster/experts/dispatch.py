"""Which replicas compute the rows of one layer: pure decisions, taken once for each pool and layer of an engine step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

SPLIT_GAIN: Final = 0.9
"""A batch is split where that takes less than this part of the time: a second replica's answer is one more to wait for."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica that could take rows, and what is known of its speed."""

    waiting_rows: float
    """Rows that it has to compute before: in flight from here, and what it reported of others."""
    fixed_s: float
    """Seconds that a batch takes, however few rows it has: the way there and back, and reading the weights."""
    row_s: float
    """Seconds that each row adds."""

    def seconds(self, rows: float) -> float:
        """Until it has computed so many rows."""
        return self.fixed_s + (self.waiting_rows + rows) * self.row_s


@dataclass(frozen=True, slots=True)
class Share:
    """Rows for one of the candidates."""

    candidate: int
    rows: int


@dataclass(frozen=True, slots=True)
class Spread:
    """Who computes a batch."""

    shares: tuple[Share, ...]
    expected_s: float
    reason: str


def spread(rows: int, candidates: Sequence[Candidate]) -> Spread:
    """Share out `rows` (at least 1) over one candidate or two, whichever is done sooner.

    Equal candidates: the first. Raises `ValueError` without candidates or rows.
    """
    if rows < 1 or not candidates:
        raise ValueError(f"{rows} rows cannot be shared out over {len(candidates)} replicas")
    order = sorted(range(len(candidates)), key=lambda number: candidates[number].seconds(rows))
    best = order[0]
    alone = candidates[best].seconds(rows)
    if len(order) == 1:
        return Spread((Share(best, rows),), alone, "the only replica")
    if rows > 1:
        halves = min(
            (_halves(rows, best, other, candidates) for other in order[1:]),
            key=lambda one: one.expected_s,
        )
        if halves.expected_s < SPLIT_GAIN * alone:
            return halves
    return Spread((Share(best, rows),), alone, "the least loaded replica")


def place(rows: Mapping[int, int], holders: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """Choose for every expert with rows the pool that computes it, among those that hold it (`holders`).

    Experts that only one pool holds come first, then the others by their rows, each to the pool with the fewest. Experts
    without a holder are left out.
    """
    chosen, load = dict[int, int](), dict[int, int]()
    free = []
    for expert, count in rows.items():
        pools = holders.get(expert, ())
        if len(pools) == 1:
            chosen[expert] = pools[0]
            load[pools[0]] = load.get(pools[0], 0) + count
        elif pools:
            free.append(expert)
    for expert in sorted(free, key=lambda one: (-rows[one], one)):
        pool = min(holders[expert], key=lambda one: (load.get(one, 0), one))
        chosen[expert] = pool
        load[pool] = load.get(pool, 0) + rows[expert]
    return chosen


def _halves(rows: int, one: int, other: int, candidates: Sequence[Candidate]) -> Spread:
    """The split over two at which both are done at about the same time."""
    a, b = candidates[one], candidates[other]
    if a.row_s + b.row_s <= 0:
        first = rows // 2  # at least 1: there are two rows or more
    else:
        # Where the two lines of time over rows cross.
        first = round(min(max((b.seconds(rows) - a.seconds(0)) / (a.row_s + b.row_s), 1), rows - 1))
    return Spread(
        (Share(one, first), Share(other, rows - first)),
        max(a.seconds(first), b.seconds(rows - first)),
        "two replicas are done sooner than one",
    )
