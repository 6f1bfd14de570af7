"""What holds for scores of stability and for variants of any text."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cluster.experts.load import ExpertLog, ExpertShape
from cluster.experts.stability import compare, perturbations

SHAPE = ExpertShape(layers=3, experts=6, top_k=2)
ROUTES = st.lists(st.permutations(range(6)).map(lambda order: order[:2]), min_size=3, max_size=3)
LOGS = st.lists(st.tuples(st.integers(0, 4), ROUTES), max_size=15).map(
    lambda tokens: ExpertLog(
        tuple(token for token, _ in tokens), np.array([route for _, route in tokens], "<u2").tobytes()
    )
)
TEXTS = st.text(max_size=80) | st.text(alphabet="aB .!?\n\r1ßéǅ", max_size=40)


@given(LOGS, LOGS)
def test_scores_are_shares_and_agree_with_what_changed(a: ExpertLog, b: ExpertLog) -> None:
    one = compare(a, b, SHAPE)
    assert 0 <= one.score <= 1 and 0 <= one.changed <= 1 and one.by_layer.shape == (3,)
    assert one.aligned <= min(one.tokens_a, one.tokens_b)
    assert (one.first_change is None) == (one.aligned == 0 or one.changed == 0)
    if one.aligned:
        assert abs(one.by_layer.mean() - one.score) < 1e-9
        assert (one.score == 1) == (one.changed == 0)
        assert 1 - one.changed <= one.score + 1e-9


@given(LOGS)
def test_a_log_does_not_differ_from_itself(log: ExpertLog) -> None:
    one = compare(log, log, SHAPE)
    assert one.aligned == len(log.tokens) and one.first_change is None
    assert one.score == (1 if log.tokens else 0)


@given(TEXTS, st.integers(0, 2**63 - 1))
def test_variants_of_any_text_are_others_and_follow_from_the_seed(text: str, seed: int) -> None:
    made = perturbations(text, seed)
    assert len(made) >= 2
    assert len({name for name, _ in made}) == len(made)
    assert all(variant not in ("", text) for _, variant in made)
    assert made == perturbations(text, seed)
