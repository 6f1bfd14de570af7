"""The form in which rows go to a pool."""

from __future__ import annotations

import numpy as np

from deployments.experts.packing import add, by_pool, pack


def test_rows_go_once_and_pairs_by_expert() -> None:
    experts = np.array([[0, 1], [2, 3], [1, 2], [0, 3]], dtype=np.int32)
    weights = (experts + 0.5).astype(np.float32)
    raw = np.arange(16, dtype=np.int16).reshape(4, 4)
    # Those of the experts 0 and 1.
    pairs = np.array([0, 1, 4, 6], dtype=np.int64)
    buffer = bytearray(4096)
    words, floats, units = body = tuple(np.frombuffer(buffer, dtype=kind) for kind in ("<i4", "<f4", "<i2"))
    rows = pack(raw, experts.reshape(-1), weights.reshape(-1), pairs, 2, body)
    assert rows.tolist() == [0, 2, 3]
    assert words[:8].tolist() == [0, 2, 0, 1, 0, 0, 1, 1]
    assert floats[8:12].tolist() == [0.5, 0.5, 1.5, 1.5]
    assert units[24:36].reshape(3, 4).tolist() == raw[rows].tolist()


def test_what_comes_back_is_added_up_and_counted() -> None:
    total = np.full((3, 2), 9, dtype=np.float32)
    counts, pairs = np.zeros(3, dtype=np.int64), np.array([0, 1, 4])
    add(total, np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32), np.array([0, 1, 2]), True, counts, pairs, 2)
    assert total.tolist() == [[1, 2], [3, 4], [5, 6]] and counts.tolist() == [2, 0, 1]
    add(total, np.array([[-1, 1], [2, -2]], dtype=np.float32), np.array([0, 2]), False, counts, pairs, 2)
    assert total.tolist() == [[0, 3], [3, 4], [7, 4]] and counts.tolist() == [4, 0, 2]


def test_pairs_are_sorted_by_pool() -> None:
    order, starts = by_pool(np.array([2, 0, 2, 1, 0]), 4)
    assert order.tolist() == [1, 4, 3, 0, 2] and starts.tolist() == [0, 2, 3, 5, 5]
