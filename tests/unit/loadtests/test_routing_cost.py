import pytest

from loadtests.routing_cost import Timed, cost_of


def test_pairs_by_different_models_or_of_different_length_are_left_out() -> None:
    named, twice = Timed("mini", 10, 1.0, 0.1), Timed("mini", 10, 2.0, 0.3)
    cost = cost_of([(named, twice)] * 5 + [(named, Timed("dense", 10, 1.0, 0.1)), (named, Timed("mini", 9, 1.0, 0.1))])
    assert (cost.pairs, cost.left_out) == (5, 2)
    assert cost.tokens_per_s.median == pytest.approx(0.5)
    assert cost.first_s.median == pytest.approx(3.0)


def test_nothing_to_compare_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="name the model"):
        cost_of([(Timed("mini", 10, 1.0, 0.1), Timed("dense", 10, 1.0, 0.1))])
