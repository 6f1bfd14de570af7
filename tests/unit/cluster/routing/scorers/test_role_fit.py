import pytest

from cluster.routing.scorers.role_fit import score, why
from tests.unit.cluster.routing.option_of import REQUEST, option_of


@pytest.mark.parametrize(("place", "expected"), [(0, 1.0), (1, 0.5), (3, 0.25)])
def test_fallbacks_score_less_the_later_they_come(place: int, expected: float) -> None:
    option = option_of(place=place)
    assert score(REQUEST, option) == pytest.approx(expected)
    assert ("plays the role" if place == 0 else f"fallback {place}") in why(REQUEST, option)
