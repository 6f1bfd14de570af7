import pytest

from cluster.routing.scorers.kv import score, why
from cluster.routing.snapshot import ModelState
from tests.unit.cluster.routing.option_of import REQUEST, option_of


@pytest.mark.parametrize(
    ("state", "expected", "words"),
    [
        (ModelState(1, kv_usage=0.0), 1.0, "0% used"),
        (ModelState(1, kv_usage=0.75), 0.25, "75% used"),
        (ModelState(1, kv_usage=1.2), 0.0, "used"),
        (ModelState(1), 1.0, "missing"),
        (ModelState(1, kv_usage=0.0, load_age_s=9.0), 0.0, "too old"),
    ],
)
def test_a_full_cache_scores_nothing(state: ModelState, expected: float, words: str) -> None:
    assert score(REQUEST, option_of(state)) == pytest.approx(expected)
    assert words in why(REQUEST, option_of(state))
