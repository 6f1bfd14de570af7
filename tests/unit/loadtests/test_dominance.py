import random

import pytest

from loadtests.dominance import Asked, dominates, summarise_arm


def arm(right: float, seconds: float, strong: int, seed: int) -> list[Asked]:
    """So many are right, in about so many seconds, with so many tokens of the strong model."""
    source = random.Random(seed)
    made = []
    for _ in range(200):
        is_right = source.random() < right
        took = (seconds * source.uniform(0.9, 1.1), seconds * source.uniform(0.9, 1.1))
        made.append(Asked(is_right, is_right, took, strong, 1))
    return made


def test_better_in_everything_dominates() -> None:
    assert dominates(arm(0.8, 1.0, 10, 1), arm(0.4, 2.0, 20, 2))


def test_worse_in_one_thing_does_not() -> None:
    own = arm(0.4, 2.0, 20, 2)
    assert not dominates(arm(0.8, 1.0, 30, 1), own)
    assert not dominates(arm(0.2, 1.0, 10, 1), own)
    assert not dominates(arm(0.8, 3.0, 10, 1), own)


def test_equals_and_chance_do_not() -> None:
    own = arm(0.4, 1.0, 20, 1)
    assert not dominates(own, own)
    with pytest.raises(ValueError, match="cannot be paired"):
        dominates(own, own[1:])


def test_a_summary() -> None:
    found = summarise_arm("auto", [Asked(True, True, (1.0, 3.0), 5, 1), Asked(False, True, (2.0, 2.0), 6, 2)])
    assert (found.right, found.consistent, found.p50_s, found.strong_tokens, found.attempts) == (0.5, 1.0, 2.0, 11, 1.5)
