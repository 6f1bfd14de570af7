"""The form in which rows go to a pool."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from deployments.experts.packing import add, by_pool, pack


def packed(
    chosen: list[list[int]], k: int, mine: set[int], hidden: int = 4, shares: tuple[float, ...] = (1.0,)
) -> tuple[list[list[tuple[int, float]]], list[list[int]], list[int], bool]:
    """Pack the pairs whose experts are `mine`: experts and weights of each row, its numbers, which row it is, all different."""
    experts = np.array(chosen, dtype=np.int32)
    weights = (experts + 0.5).astype(np.float32)
    raw = np.arange(len(chosen) * hidden, dtype=np.int16).reshape(len(chosen), hidden)
    pairs = np.array([i for i, expert in enumerate(experts.reshape(-1)) if int(expert) in mine], dtype=np.int64)
    buffer = bytearray(4096)
    words, floats, units = body = tuple(np.frombuffer(buffer, dtype=kind) for kind in ("<i4", "<f4", "<i2"))
    scales = np.array(shares, dtype=np.float32)
    rows, most, different = pack(raw, experts.reshape(-1), weights.reshape(-1), pairs, k, body, scales)
    places = len(rows) * most
    given = [
        [(int(words[p]), float(floats[places + p])) for p in range(i * most, (i + 1) * most)] for i in range(len(rows))
    ]
    sent: npt.NDArray[np.int16] = units[4 * places : 4 * places + len(rows) * hidden].reshape(len(rows), hidden)
    assert (sent == raw[rows]).all()
    return given, sent.tolist(), rows.tolist(), bool(different)


def test_rows_are_filled_up_with_places_of_no_weight() -> None:
    given, _, rows, different = packed([[0, 1], [2, 3], [1, 2], [0, 3]], 2, {0, 1})
    assert rows == [0, 2, 3] and different
    assert given == [[(0, 0.5), (1, 1.5)], [(1, 1.5), (1, 0.0)], [(0, 0.5), (0, 0.0)]]


def test_pairs_go_one_by_one_where_filling_up_would_be_more_than_twice_as_much() -> None:
    chosen = [[0, 1, 2, 3], *[[0, 9, 9, 9] for _ in range(20)]]
    given, _, rows, different = packed(chosen, 4, {0, 1, 2, 3})
    assert rows == [0, 0, 0, 0, *range(1, 21)] and not different
    assert given == [[(0, 0.5)], [(1, 1.5)], [(2, 2.5)], [(3, 3.5)], *[[(0, 0.5)]] * 20]


def test_copies_share_out_the_weights() -> None:
    given, _, rows, different = packed([[0, 1], [2, 3]], 2, {0, 1, 3}, shares=(0.25, 0.75))
    assert rows == [0, 1, 0, 1] and different
    assert given == [
        [(0, 0.125), (1, 0.375)],
        [(3, 0.875), (3, 0.0)],
        [(0, 0.375), (1, 1.125)],
        [(3, 2.625), (3, 0.0)],
    ]


def test_what_comes_back_is_added_up_and_counted() -> None:
    total = np.zeros((3, 2), dtype=np.float32)
    counts, pairs, row = np.zeros(3, dtype=np.int64), np.array([0, 1, 4]), np.zeros(2, dtype=np.int32)
    scratch = row, row.view(np.float32)
    part = np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32)
    add(total, part, np.array([0, 0, 2]), 0, scratch, counts, pairs, 2)
    assert total.tolist() == [[4, 6], [0, 0], [5, 6]] and counts.tolist() == [2, 0, 1]
    brain = torch.from_numpy(-part).bfloat16().view(torch.uint16).numpy()
    add(total, brain, np.array([0, 1, 1]), 2, scratch, counts, pairs, 2)
    assert total.tolist() == [[-1, -2], [-8, -10], [5, 6]]


def test_pairs_are_sorted_by_pool() -> None:
    order, starts = by_pool(np.array([2, 0, 2, 1, 0]), 4)
    assert order.tolist() == [1, 4, 3, 0, 2] and starts.tolist() == [0, 2, 3, 5, 5]
