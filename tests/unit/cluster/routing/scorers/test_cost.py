import pytest

from cluster.routing.scorers.cost import score, why
from tests.unit.cluster.routing.option_of import REQUEST, option_of


@pytest.mark.parametrize(("price", "expected"), [(0.0, 1.0), (1.0, 0.5), (9.0, 0.1)])
def test_dear_models_score_less(price: float, expected: float) -> None:
    option = option_of(price_per_million_tokens=price)
    assert score(REQUEST, option) == pytest.approx(expected)
    assert f"{price:g} per million" in why(REQUEST, option)
