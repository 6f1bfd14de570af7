"""The loops over pairs and rows that a trunk runs for every layer and pool of every step, compiled: in NumPy they are many small calls."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, TypeVar

import numba  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

_log = logging.getLogger(__name__)

SMALL_BATCH: Final = 32
"""Up to so many places it is the reading of the experts that takes the time, not the rows."""

Numbers = npt.NDArray[np.int64]
_F = TypeVar("_F", bound=Callable[..., Any])


def _compiled(function: _F) -> _F:
    """Compiled when it is first called; `warm` does that. The interpreter's lock stays held: the loops take microseconds."""
    try:
        done: _F = numba.njit(cache=True, error_model="numpy")(function)
    except RuntimeError as error:
        _log.info("loops are compiled anew at each start: %s", error)
        done = numba.njit(error_model="numpy")(function)
    return done


@_compiled
def by_pool(pools: Numbers, count: int) -> tuple[Numbers, Numbers]:
    """Places of `pools` (each a number below `count`) sorted by pool and then by place, and where each pool begins among them."""
    starts = np.zeros(count + 1, dtype=np.int64)
    for pool in pools:
        starts[pool + 1] += 1
    for number in range(count):
        starts[number + 1] += starts[number]
    following = starts[:-1].copy()
    order = np.empty(len(pools), dtype=np.int64)
    for place in range(len(pools)):
        pool = pools[place]
        order[following[pool]] = place
        following[pool] += 1
    return order, starts


@_compiled
def pack(
    raw: npt.NDArray[Any],
    experts: npt.NDArray[np.int32],
    weights: npt.NDArray[np.float32],
    pairs: Numbers,
    k: int,
    words: npt.NDArray[np.int32],
    floats: npt.NDArray[np.float32],
    units: npt.NDArray[Any],
) -> tuple[Numbers, int, bool]:
    """Write the body of a REQUEST for `pairs` (places in the flat `experts` and `weights`, ascending).

    `words`, `floats` and `units` (of the width of `raw`'s numbers) are three views of the body. Returns the row of `raw` that
    each row of the request is, how many places for experts each has, and whether all are different. Rows with fewer pairs than others are filled up
    with places of no weight, up to twice the pairs; beyond that each pair gets a row of its own.
    """
    count = len(pairs)
    rows = np.empty(count, dtype=np.int64)
    found = most = here = 0
    for i in range(count):
        row = pairs[i] // k
        if found == 0 or rows[found - 1] != row:
            rows[found] = row
            found += 1
            here = 0
        here += 1
        most = max(most, here)
    different = found * most <= max(2 * count, SMALL_BATCH)
    if not different:
        most, found = 1, count
        for i in range(count):
            rows[i] = pairs[i] // k
    places = found * most
    following = 0
    for i in range(found):
        # Free places name an expert that is computed anyway: no other weights are read for them.
        first = experts[pairs[following]]
        for place in range(i * most, (i + 1) * most):
            if following < count and pairs[following] // k == rows[i]:
                words[place] = experts[pairs[following]]
                floats[places + place] = weights[pairs[following]]
                following += 1
            else:
                words[place] = first
                floats[places + place] = 0.0
    place = 2 * places * 4 // units.itemsize
    hidden = raw.shape[1]
    for i in range(found):
        row = rows[i]
        for j in range(hidden):
            units[place + j] = raw[row, j]
        place += hidden
    return rows[:found], most, different


@_compiled
def add(
    total: npt.NDArray[np.float32],
    part: npt.NDArray[np.float32],
    rows: Numbers,
    first: bool,
    counts: Numbers,
    pairs: Numbers,
    k: int,
) -> None:
    """Add the rows of `part` to those of `total` that `rows` names, or write them there if they are the `first`.

    Counts up `counts` by row for each of the `pairs`.
    """
    hidden = total.shape[1]
    for i in range(len(rows)):
        row = rows[i]
        if first:
            for j in range(hidden):
                total[row, j] = part[i, j]
        else:
            for j in range(hidden):
                total[row, j] += part[i, j]
    for pair in pairs:
        counts[pair // k] += 1


def warm(raw: npt.NDArray[Any]) -> None:
    """Compile for rows (1, hidden) like these: seconds, unless an earlier process left the code on the disk."""
    one = np.zeros(1, dtype=np.int64)
    by_pool(one, 1)
    buffer = bytearray(8 + raw.nbytes + raw.nbytes % 4)
    words, floats = np.frombuffer(buffer, dtype=np.int32), np.frombuffer(buffer, dtype=np.float32)
    experts, weights = np.zeros(1, dtype=np.int32), np.zeros(1, dtype=np.float32)
    pack(raw, experts, weights, one, 1, words, floats, np.frombuffer(buffer, dtype=raw.dtype))
    total = np.zeros(raw.shape, dtype=np.float32)
    add(total, total, one, True, one.copy(), one, 1)
