import pytest

from cluster.routing.scorers.queue import score, why
from cluster.routing.snapshot import ModelState
from tests.unit.cluster.routing.option_of import REQUEST, option_of


@pytest.mark.parametrize(
    ("state", "expected", "words"),
    [
        (ModelState(1, running=0, waiting=0), 1.0, "0 running and 0 waiting"),
        (ModelState(1, running=3, waiting=1), 0.5, "3 running and 1 waiting"),
        (ModelState(1, running=8, waiting=90), 0.0, "8 running and 90 waiting"),
        (ModelState(1), 1.0, "load missing"),
        (ModelState(1, running=0, waiting=0, load_age_s=3.1), 0.0, "told 3.1 s ago, which is too old"),
    ],
)
def test_full_replicas_score_nothing(state: ModelState, expected: float, words: str) -> None:
    option = option_of(state, replicas={"max_ongoing_requests": 8, "target_ongoing_requests": 4})
    assert score(REQUEST, option) == pytest.approx(expected)
    assert words in why(REQUEST, option)
