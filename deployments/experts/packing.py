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
def _rows(pairs: Numbers, k: int, rows: Numbers) -> tuple[int, int]:
    """Write to `rows` those that have `pairs`; returns how many they are, and the most pairs that one of them has."""
    found = most = here = 0
    for pair in pairs:
        row = pair // k
        if found == 0 or rows[found - 1] != row:
            rows[found] = row
            found += 1
            here = 0
        here += 1
        most = max(most, here)
    return found, most


@_compiled
def pack(
    raw: npt.NDArray[Any],
    experts: npt.NDArray[np.int32],
    weights: npt.NDArray[np.float32],
    pairs: Numbers,
    k: int,
    body: Body,
    shares: npt.NDArray[np.float32],
) -> tuple[Numbers, int, bool]:
    """Write the body of a REQUEST for `pairs` (places in the flat `experts` and `weights`, ascending).

    Returns the row of `raw` that each row of the request is, how many places for experts each has, and whether all rows of a
    copy are different. Rows with fewer pairs than others are filled up with places of no weight, up to twice the pairs;
    beyond that each pair gets a row of its own. There is a copy of all rows for each of `shares`, which scales the weights.
    """
    words, floats, units = body
    count = len(pairs)
    rows = np.empty(count * len(shares), dtype=np.int64)
    found, most = _rows(pairs, k, rows)
    different = found * most <= max(2 * count, SMALL_BATCH)
    if not different:
        most, found = 1, count
        for i in range(count):
            rows[i] = pairs[i] // k
    all_rows, copied = found * len(shares), found * most
    places = copied * len(shares)
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
    for copy in range(len(shares) - 1, -1, -1):
        for place in range(copied):
            words[copy * copied + place] = words[place]
            floats[places + copy * copied + place] = shares[copy] * floats[places + place]
        for i in range(found):
            rows[copy * found + i] = rows[i]
    place = 2 * places * 4 // units.itemsize
    hidden = raw.shape[1]
    for i in range(all_rows):
        row = rows[i]
        for j in range(hidden):
            units[place + j] = raw[row, j]
        place += hidden
    return rows[:all_rows], most, different


@_compiled
def add(
    total: npt.NDArray[np.float32],
    part: npt.NDArray[Any],
    rows: Numbers,
    fresh: int,
    scratch: tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]],
    counts: Numbers,
    pairs: Numbers,
    k: int,
) -> None:
    """Add the rows of `part` to those of `total` that `rows` names; the first `fresh` ones are written there instead.

    `part` has float32, or bfloat16 as numbers of 16 bits without sign. `scratch` is a row of 32 bits, seen as whole numbers and
    as float32. Counts up `counts` by row for each of the `pairs`.
    """
    hidden = total.shape[1]
    bits, values = scratch
    for i in range(len(rows)):
        row = rows[i]
        if part.itemsize == 2:
            for j in range(hidden):
                bits[j] = np.int32(part[i, j]) << 16
        else:
            for j in range(hidden):
                values[j] = part[i, j]
        if i < fresh:
            for j in range(hidden):
                total[row, j] = values[j]
        else:
            for j in range(hidden):
                total[row, j] += values[j]
    for pair in pairs:
        counts[pair // k] += 1


def warm(raw: npt.NDArray[Any], part: npt.NDArray[Any]) -> None:
    """Compile for rows (1, hidden) like these: seconds, unless an earlier process left the code on the disk."""
    one = np.zeros(1, dtype=np.int64)
    by_pool(one, 1)
    buffer = bytearray(8 + raw.nbytes + raw.nbytes % 4)
    experts, weights = np.zeros(1, dtype=np.int32), np.zeros(1, dtype=np.float32)
    body = np.frombuffer(buffer, np.int32), np.frombuffer(buffer, np.float32), np.frombuffer(buffer, raw.dtype)
    pack(raw, experts, weights, one, 1, body, np.ones(1, dtype=np.float32))
    row = np.zeros(raw.shape[1], dtype=np.int32)
    total = np.zeros(raw.shape, dtype=np.float32)
    add(total, part, one, 0, (row, row.view(np.float32)), one.copy(), one, 1)
