"""Who takes turns when replicas have equal work. That Serve's router uses it is seen in tests/faults."""

from __future__ import annotations

from collections import Counter

from deployments.router import Turns


def test_the_least_loaded_comes_first() -> None:
    turns = Turns()
    assert turns.order({"a": 3, "b": 1, "c": 2}) == ["b", "c", "a"]
    # However often it was chosen already.
    assert turns.order({"a": 3, "b": 1, "c": 2}) == ["b", "c", "a"]
    assert turns.order({}) == []


def test_requests_that_come_together_are_spread() -> None:
    turns = Turns()
    assert Counter(turns.order({"a": 0, "b": 0, "c": 0})[0] for _ in range(9)) == {"a": 3, "b": 3, "c": 3}


def test_those_that_are_gone_are_forgotten() -> None:
    turns = Turns()
    for number in range(1000):
        turns.order({f"r{number}": 0, "stays": 1})
        turns.keep(frozenset({f"r{number}", "stays"}))
    assert len(turns._chosen) <= 2
