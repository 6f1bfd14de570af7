from __future__ import annotations

import pytest

from cluster.scaling import Load, replicas_wanted


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
def test_memory_asks_for_one_replica_more_and_keeps_what_there_is(
    by_requests: float, current: int, levels: list[float], wanted: float
) -> None:
    assert replicas_wanted(by_requests, current, levels=levels).replicas == wanted


@pytest.mark.parametrize(
    ("values", "target", "tolerance", "wanted"),
    [
        ((4.0, 4.0), 4.0, 0.0, 2.0),
        ((8.0, 4.0), 4.0, 0.0, 3.0),
        ((4.2, 4.2), 4.0, 0.1, 2.0),
        ((4.2, 4.2), 4.0, 0.0, 2.1),
        ((1.0, 1.0), 4.0, 0.1, 1.0),
        ((), 4.0, 0.1, 1.0),
    ],
)
def test_a_figure_asks_for_as_many_as_bring_its_mean_to_the_target(
    values: tuple[float, ...], target: float, tolerance: float, wanted: float
) -> None:
    found = replicas_wanted(1.0, 2, [Load("waiting", values, target)], tolerance=tolerance)
    assert found.replicas == pytest.approx(wanted)


def test_the_largest_need_decides_and_says_why() -> None:
    loads = [Load("tokens in flight", (3000.0,), 1000), Load("share of the KV cache in use", (0.9,), 0.8)]
    found = replicas_wanted(2.0, 1, loads, [1.0])
    assert (found.replicas, found.reason) == (3.0, "tokens in flight: 3000 a replica, aimed at 1000")
    assert replicas_wanted(5.0, 1, loads).reason == "requests in flight"
    assert replicas_wanted(1.0, 4, [], [0.0, 2.0]).reason == "precision is lowered for want of KV memory (level 2)"


def test_one_figure_that_is_low_takes_no_replica_that_another_needs() -> None:
    loads = [Load("waiting", (0.0, 0.0), 4.0), Load("tokens", (90.0, 110.0), 100.0)]
    assert replicas_wanted(0.1, 2, loads, tolerance=0.1).replicas == 2
