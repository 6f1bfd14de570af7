from __future__ import annotations

import pytest

from cluster.scaling import replicas_wanted


@pytest.mark.parametrize(
    ("by_requests", "current", "levels", "wanted"),
    [
        (1, 1, [], 1),
        (1, 1, [0, 0], 1),
        (1, 1, [1], 2),
        (1, 3, [0, 0, 2], 4),
        (5, 2, [4, 4], 5),
        (1, 2, [0.4, 0.1], 1),
        (0, 2, [0.5], 3),
    ],
)
def test_memory_asks_for_one_replica_more_and_keeps_what_there_is(by_requests, current, levels, wanted) -> None:
    assert replicas_wanted(by_requests, current, levels) == wanted
