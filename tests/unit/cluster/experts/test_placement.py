from __future__ import annotations

import numpy as np
import pytest

from cluster.experts.placement import (
    Placement,
    PlacementError,
    Reals,
    Slots,
    aligned,
    balanced,
    potential,
    rearrange,
    replica_loads,
    round_robin,
)

ONE = np.ones(2)


def packed(weights: Reals, slots: int, pools: int) -> Slots:
    """Each expert, the heaviest first, to the pool that has the least; no expert has a second copy."""
    found = []
    for layer in weights:
        bundles: list[list[int]] = [[] for _ in range(pools)]
        for expert in np.argsort(-layer, kind="stable").tolist():
            room = [bundle for bundle in bundles if len(bundle) < slots]
            min(room, key=lambda bundle: sum(layer[bundle])).append(expert)
        found.append([expert for bundle in bundles for expert in bundle])
    return np.array(found)


def held(placement: Placement, layer: int = 0) -> list[list[int]]:
    return [np.flatnonzero(pool[layer]).tolist() for pool in placement]


def test_the_static_placement_goes_in_turn() -> None:
    assert held(round_robin(2, 5, 2), layer=1) == [[0, 2, 4], [1, 3]]
    with pytest.raises(PlacementError, match="3 experts cannot be shared out among 4 pools"):
        round_robin(1, 3, 4)


def test_tokens_of_a_pair_spread_over_all_replicas_that_hold_it() -> None:
    placement = np.array([[[True, True, False]], [[False, True, True]]])
    weights = np.array([[6.0, 12.0, 9.0]])
    assert replica_loads(placement, weights, np.array([1.0, 1.0]))[:, 0].tolist() == [12.0, 15.0]
    assert replica_loads(placement, weights, np.array([3.0, 1.0]))[:, 0].tolist() == [5.0, 12.0]


def test_a_slot_that_would_hold_an_expert_twice_goes_to_another_one() -> None:
    def doubles(weights: Reals, slots: int, pools: int) -> Slots:
        return np.array([[0, 0, 1, 2]])

    assert held(balanced(np.array([[9.0, 1.0, 2.0]]), 2, 2, doubles)) == [[0, 2], [1, 2]]


@pytest.mark.parametrize("slots", [[[0, 0, 1, 1]], [[0, 1, 2]]])
def test_a_balancing_algorithm_that_forgets_an_expert_is_refused(slots: list[list[int]]) -> None:
    with pytest.raises(PlacementError):
        balanced(np.ones((1, 3)), 2, 2, lambda *_: np.array(slots))


def test_bundles_go_where_most_of_them_is_already() -> None:
    current = round_robin(1, 8, 4)
    swapped = current[[2, 0, 3, 1]]
    assert (aligned(current, swapped) == current).all()


def test_the_largest_gain_is_taken_first_and_the_rest_is_told() -> None:
    # Pool 0 holds both heavy experts of either layer; layer 1 is ten times as heavy.
    weights = np.array([[4.0, 4.0, 1.0, 1.0], [40.0, 40.0, 10.0, 10.0]])
    current = np.zeros((2, 2, 4), np.bool_)
    current[0, :, :2] = current[1, :, 2:] = True
    target = balanced(weights, 2, 2, packed)
    whole = rearrange(current, target, weights, ONE, budget=100)
    assert (len(whole.moves), whole.left) == (4, 0)
    assert replica_loads(whole.placement, weights, ONE).tolist() == [[5.0, 50.0], [5.0, 50.0]]
    some = rearrange(current, target, weights, ONE, budget=3)
    assert {move.layer for move in some.moves} == {1} and some.loads == 2 and some.left == 2
    assert some.gain == pytest.approx(1 - (8**2 + 2**2 + 2 * 50**2) / (8**2 + 2**2 + 80**2 + 20**2))


def test_a_pair_in_no_other_pool_is_exchanged_never_dropped() -> None:
    weights = np.array([[4.0, 4.0, 1.0, 1.0]])
    current = np.array([[[True, True, False, False]], [[False, False, True, True]]])
    found = rearrange(current, balanced(weights, 2, 2, packed), weights, ONE, budget=1)
    assert found.moves == () and (found.placement == current).all()


def test_a_hot_expert_gets_a_copy_for_a_cold_one_that_has_two() -> None:
    weights = np.array([[8.0, 1.0, 1.0]])
    current = np.array([[[True, True, False]], [[False, True, True]]])
    target = np.array([[[True, True, False]], [[True, False, True]]])
    found = rearrange(current, target, weights, ONE, budget=1)
    assert [(move.pool, move.expert, move.instead_of) for move in found.moves] == [(1, 0, 1)]
    assert potential(replica_loads(found.placement, weights, ONE), ONE) == 5.0**2 + 5.0**2


def test_a_pool_with_replicas_loads_a_pair_into_each_and_a_resting_pair_stays() -> None:
    weights = np.array([[8.0, 1.0, 1.0]])
    current = np.array([[[True, True, False]], [[False, True, True]]])
    target = np.array([[[True, True, False]], [[True, False, True]]])
    twice = np.array([1.0, 2.0])
    assert rearrange(current, target, weights, twice, budget=1).moves == ()
    assert rearrange(current, target, weights, twice, budget=2).loads == 2
    assert rearrange(current, target, weights, twice, budget=2, resting={(0, 0)}).moves == ()
