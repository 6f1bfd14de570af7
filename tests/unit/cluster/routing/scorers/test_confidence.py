from dataclasses import replace

from cluster.routing.reading import Reading
from cluster.routing.scorers.confidence import NEUTRAL, score, why
from cluster.routing.snapshot import ModelState
from tests.unit.cluster.routing.option_of import REQUEST, option_of


def test_it_is_that_of_the_same_intent() -> None:
    option = option_of(ModelState(1, confidence={"math": 0.2}))
    sums = replace(REQUEST, intent=Reading("math", "lexical"))
    assert score(sums, option) == 0.2
    assert "0.20" in why(sums, option)
    for signals in (REQUEST, replace(REQUEST, intent=Reading("facts", "lexical"))):
        assert score(signals, option) == NEUTRAL
        assert "no confidence known" in why(signals, option)
