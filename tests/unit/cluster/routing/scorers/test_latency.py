import pytest

from cluster.routing.scorers.latency import score, why
from cluster.routing.snapshot import ModelState
from tests.unit.cluster.routing.option_of import REQUEST, option_of


@pytest.mark.parametrize(
    ("measured", "target", "expected"), [(0.5, 1.0, 1.0), (2.0, 1.0, 0.5), (None, 1.0, 1.0), (2.0, None, 1.0)]
)
def test_beyond_the_target_it_falls(measured: float | None, target: float | None, expected: float) -> None:
    option = option_of(ModelState(1, ttft_s=measured), target_s=target)
    assert score(REQUEST, option) == pytest.approx(expected)
    assert ("missing" if measured is None else f"{measured:.2f} s") in why(REQUEST, option)
