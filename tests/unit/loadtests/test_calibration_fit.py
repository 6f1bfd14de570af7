import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config.cluster import ClusterConfig
from loadtests.calibration_fit import calibration_error, fit, separation


def sample(count: int, seed: int) -> tuple[list[float], list[bool]]:
    """Answers that are right less often than their raw confidence says."""
    source = random.Random(seed)
    raw = [source.random() for _ in range(count)]
    return raw, [source.random() < value**2 for value in raw]


def test_a_calibration_mends_overconfidence_on_answers_it_has_not_seen() -> None:
    calibration = fit(*sample(600, 1))
    raw, right = sample(600, 2)
    before = calibration_error(raw, right)
    after = calibration_error([calibration.score(value) for value in raw], right)
    assert before > 0.12
    assert after < 0.08


def test_separation_is_one_for_perfect_order_and_a_half_for_none() -> None:
    raw, right = sample(400, 3)
    assert separation([float(value) for value in right], right).median == 1.0
    blind = separation([0.5] * 400, right)
    assert (blind.median, blind.low, blind.high) == (0.5, 0.5, 0.5)
    seen = separation(raw, right)
    assert 0.5 < seen.low < seen.median < seen.high < 1
    with pytest.raises(ValueError, match="all right"):
        separation(raw, [True] * 400)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=60))
def test_what_is_fitted_is_a_calibration_that_the_config_takes(answers: list[tuple[float, bool]]) -> None:
    points = fit([raw for raw, _ in answers], [right for _, right in answers]).points
    model = {"kind": "dense", "roles": ["strong", "fast", "fluency"], "source": "embedded:dense", "calibration": points}
    assert ClusterConfig.model_validate({"models": {"dense": model}}).models["dense"].calibration == points


def test_too_few_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be fitted"):
        fit([0.5], [True])
