import pytest

from cluster.precision.measures import Measure, in_force, name_of

LEVELS = tuple(Measure)


def test_levels_add_up() -> None:
    assert in_force(LEVELS, 0) == set()
    assert in_force(LEVELS, 2) == {Measure.CONSERVATIVE_SAMPLING, Measure.FP8_KV}
    assert in_force(LEVELS, 9) == set(Measure)
    assert in_force(LEVELS, -1) == set()


@pytest.mark.parametrize(("level", "name"), [(-1, "normal"), (0, "normal"), (2, "fp8_kv"), (4, "shed"), (9, "shed")])
def test_a_level_has_the_name_of_its_last_measure(level: int, name: str) -> None:
    assert name_of(LEVELS, level) == name
    assert name_of((), level) == "normal"
