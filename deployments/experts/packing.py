"""The loops over pairs and rows that a trunk runs for every layer and pool of every step, compiled: in NumPy they are many small calls."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import numba  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

_log = logging.getLogger(__name__)

Numbers = npt.NDArray[np.int64]
Body = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[Any]]
"""Three views of the body of a request: words, float32, and numbers of the width of those that the engine computes in."""
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
    body: Body,
) -> Numbers:
    """Write the body of a REQUEST for `pairs` (places in the flat `experts` and `weights`, ascending).

    Returns the row of `raw` that each row of the request is.
    """
    words, floats, units = body
    count, hidden = len(pairs), raw.shape[1]
    rows = np.empty(count, dtype=np.int64)
    place = 3 * count * 4 // units.itemsize
    found = most = 0
    for pair in pairs:
        most = max(most, experts[pair])
    # Where the next pair of each expert goes.
    following = np.zeros(most + 2, dtype=np.int64)
    for pair in pairs:
        following[experts[pair] + 1] += 1
    for expert in range(most):
        following[expert + 1] += following[expert]
    for i in range(count):
        pair = pairs[i]
        row = pair // k
        if found == 0 or rows[found - 1] != row:
            rows[found] = row
            found += 1
            for j in range(hidden):
                units[place + j] = raw[row, j]
            place += hidden
        at = following[experts[pair]]
        following[experts[pair]] += 1
        words[at] = found - 1
        words[count + at] = experts[pair]
        floats[2 * count + at] = weights[pair]
    return rows[:found]


@_compiled
def add(
    total: npt.NDArray[np.float32],
    part: npt.NDArray[np.float32],
    rows: Numbers,
    fresh: bool,
    counts: Numbers,
    pairs: Numbers,
    k: int,
) -> None:
    """Add the rows of `part` to those of `total` that `rows` names; if it is `fresh`, they are written there instead.

    Counts up `counts` by row for each of the `pairs`.
    """
    hidden = total.shape[1]
    for i in range(len(rows)):
        row = rows[i]
        if fresh:
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
    buffer = bytearray(12 + raw.nbytes + raw.nbytes % 4)
    experts, weights = np.zeros(1, dtype=np.int32), np.zeros(1, dtype=np.float32)
    body = np.frombuffer(buffer, np.int32), np.frombuffer(buffer, np.float32), np.frombuffer(buffer, raw.dtype)
    pack(raw, experts, weights, one, 1, body)
    total = np.zeros(raw.shape, dtype=np.float32)
    add(total, total.copy(), one, True, one.copy(), one, 1)
