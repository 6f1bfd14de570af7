import pytest

from cluster.admission.drain import WINDOW_S, Drain


def test_nothing_is_known_before_somebody_waited() -> None:
    drain = Drain()
    for at in range(100):
        drain.ended(at)
    assert drain.per_s(100.0) is None
    drain.wait(True, 100.0)
    drain.ended(100.001)
    drain.ended(100.002)
    # Two ends a millisecond apart are no two thousand a second.
    assert drain.per_s(100.003) is None
    assert drain.per_s(101.0) == pytest.approx(2.0)


def test_the_clock_stands_while_nobody_waits() -> None:
    drain = Drain()
    drain.wait(True, 0.0)
    for at in range(1, 11):
        drain.ended(at * 0.2)
    drain.wait(False, 2.0)
    assert drain.per_s(500.0) == pytest.approx(5.0)
    drain.wait(True, 1000.0)
    assert drain.per_s(1000.5) == pytest.approx(4.0)


def test_what_ended_long_ago_does_not_count() -> None:
    drain = Drain()
    drain.wait(True, 0.0)
    for at in range(1, 101):
        drain.ended(at * 0.1)
    assert drain.per_s(WINDOW_S + 5.0) == pytest.approx(50 / WINDOW_S, rel=0.05)


def test_where_nothing_ends_the_rate_is_below_one_end_in_that_time() -> None:
    drain = Drain()
    assert drain.at_most_per_s(4.0) is None
    drain.wait(True, 0.0)
    assert drain.per_s(4.0) is None
    assert drain.at_most_per_s(4.0) == pytest.approx(0.25)
    assert drain.at_most_per_s(400.0) == pytest.approx(1 / WINDOW_S)


def test_a_few_ends_may_be_too_few() -> None:
    drain = Drain()
    drain.wait(True, 0.0)
    for at in range(3):
        drain.ended(20.0 + at)
    assert drain.per_s(25.0, ends=4) is None
    assert drain.per_s(25.0, ends=3) == pytest.approx(3 / 25)


def test_many_ends_are_counted_over_their_own_time() -> None:
    drain = Drain()
    drain.wait(True, 0.0)
    for at in range(1, 20_001):
        drain.ended(at * 0.001)
    assert drain.per_s(20.0) == pytest.approx(1000.0, rel=0.01)
