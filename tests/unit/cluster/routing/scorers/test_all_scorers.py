"""What holds for every scorer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.routing.scorers import Scorer, scorer_names, scorers
from cluster.routing.snapshot import ModelState
from tests.unit.cluster.routing.option_of import REQUEST, option_of

STATES = st.builds(
    ModelState,
    ready_replicas=st.integers(0, 5),
    running=st.none() | st.floats(0, 1e6),
    waiting=st.none() | st.floats(0, 1e6),
    kv_usage=st.none() | st.floats(-0.5, 2),
    load_age_s=st.floats(0, 100),
    ttft_s=st.none() | st.floats(0, 1e4),
)
SCORERS = scorers(dict.fromkeys(scorer_names(), 1.0))


@pytest.mark.parametrize("scorer", SCORERS, ids=[scorer.name for scorer in SCORERS])
@given(STATES, st.integers(0, 20), st.floats(0.01, 100), st.floats(0, 1e4))
def test_scores_are_fractions_and_constant_ones_do_not_change(
    scorer: Scorer, state: ModelState, place: int, target_s: float, price: float
) -> None:
    option = option_of(state, place, target_s, price_per_million_tokens=price)
    value = scorer.score(REQUEST, option)
    assert 0.0 <= value <= 1.0
    assert scorer.why(REQUEST, option)
    if scorer.constant:
        assert value == scorer.score(REQUEST, option.at(ModelState(1)))
