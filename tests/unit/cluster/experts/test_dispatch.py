from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.experts.costs import CostEstimate
from cluster.experts.dispatch import Candidate, Share, place, spread
from cluster.experts.fallback import substitute

candidates = st.lists(
    st.builds(Candidate, st.floats(0, 1e4), st.floats(0, 0.1), st.floats(0, 1e-3)), min_size=1, max_size=6
)


def test_one_replica_takes_all() -> None:
    assert spread(7, [Candidate(100, 1e-4, 1e-5)]).shares == (Share(0, 7),)


def test_a_small_batch_goes_to_the_least_loaded() -> None:
    chosen = spread(2, [Candidate(50, 1e-3, 1e-5), Candidate(0, 1e-3, 1e-5)])
    assert chosen.shares == (Share(1, 2),) and "least loaded" in chosen.reason


def test_a_large_batch_is_split_where_that_is_faster() -> None:
    chosen = spread(100, [Candidate(0, 1e-4, 1e-4), Candidate(0, 1e-4, 1e-4)])
    assert chosen.shares == (Share(0, 50), Share(1, 50)) and "two replicas" in chosen.reason


@given(st.integers(1, 5000), candidates)
def test_every_row_is_computed_once_and_never_later_than_by_one_alone(rows: int, these: list[Candidate]) -> None:
    chosen = spread(rows, these)
    assert sum(share.rows for share in chosen.shares) == rows
    assert all(share.rows > 0 for share in chosen.shares)
    assert len({share.candidate for share in chosen.shares}) == len(chosen.shares) <= 2
    assert chosen.expected_s <= min(one.seconds(rows) for one in these) + 1e-12


def test_nobody_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 replicas"):
        spread(1, [])


@given(
    st.dictionaries(st.integers(0, 20), st.integers(1, 100), max_size=12),
    st.dictionaries(st.integers(0, 20), st.lists(st.integers(0, 4), min_size=1, unique=True)),
)
def test_experts_are_placed_with_those_that_hold_them(rows: dict[int, int], holders: dict[int, list[int]]) -> None:
    chosen = place(rows, holders)
    assert set(chosen) == set(rows) & set(holders)
    assert all(pool in holders[expert] for expert, pool in chosen.items())


def test_an_expert_in_two_pools_goes_where_there_is_less_to_do() -> None:
    assert place({0: 9, 1: 5, 2: 1}, {0: [0], 1: [0, 1], 2: [0, 1]}) == {0: 0, 1: 1, 2: 1}


@given(
    st.lists(st.floats(-20, 20), min_size=4, max_size=16),
    st.sets(st.integers(0, 15)),
)
def test_who_stands_in_can_be_reached_and_the_weights_add_up(logits: list[float], gone: set[int]) -> None:
    order = sorted(range(len(logits)), key=lambda expert: -logits[expert])
    found = substitute(order[:2], [0.7, 0.3], logits, lambda expert: expert not in gone)
    left = [expert for expert in order if expert not in gone]
    if not left:
        assert found is None
        return
    assert found is not None
    assert set(found.experts) == set(left[:2])
    assert sum(found.weights) == pytest.approx(1.0)
    assert found.replaced == len(set(order[:2]) & gone)


def test_costs_are_learned_from_batches() -> None:
    cost = CostEstimate()
    for rows in (1, 16, 4, 64, 8) * 20:
        cost.add(rows, 3e-4 + rows * 2e-5)
    assert cost.fixed_s == pytest.approx(3e-4, rel=0.01) and cost.row_s == pytest.approx(2e-5, rel=0.01)
