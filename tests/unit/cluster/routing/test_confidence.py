import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.routing.confidence import TOP, WINDOW, Calibration, ConfidenceMeter, TokenConfidence
from deployments.engines.protocol import judged_event, split_judged

logprobs = st.floats(-30, 0)


def judged(*tokens: float, rest: float = 0.0) -> TokenConfidence:
    meter = ConfidenceMeter()
    for token in tokens:
        meter.add(token, [token, rest] if rest else [token])
    result = meter.result()
    assert result is not None
    return result


def test_the_figures_of_a_known_answer() -> None:
    certain = judged(*[0.0] * 20)
    assert (certain.mean_logprob, certain.weakest_window, certain.margin, certain.entropy) == (0, 0, 1, 0)
    assert certain.raw == 1.0
    half = judged(math.log(0.5), rest=math.log(0.5))
    assert half.margin == pytest.approx(0)
    assert half.entropy == pytest.approx(math.log(2))
    assert half.raw < certain.raw


def test_the_weakest_window_finds_one_bad_phrase_in_a_long_answer() -> None:
    good, bad = [-0.1] * 100, [-3.0] * WINDOW
    result = judged(*good, *bad, *good)
    assert result.weakest_window == pytest.approx(-3.0)
    assert result.mean_logprob > -0.4
    # Of a short answer the whole is the window.
    assert judged(-1.0, -3.0).weakest_window == pytest.approx(-2.0)


def test_nothing_is_said_before_the_first_token() -> None:
    assert ConfidenceMeter().result() is None


@given(st.lists(st.tuples(logprobs, st.lists(logprobs, max_size=TOP + 2)), min_size=1, max_size=40))
def test_every_figure_stays_within_its_bounds(tokens: list[tuple[float, list[float]]]) -> None:
    meter = ConfidenceMeter()
    for chosen, top in tokens:
        meter.add(chosen, sorted(top, reverse=True))
    result = meter.result()
    assert result is not None
    assert result.tokens == len(tokens)
    assert result.weakest_window <= result.mean_logprob + 1e-9 or result.tokens > WINDOW
    assert 0 <= result.margin <= 1
    assert 0 <= result.entropy <= math.log(TOP + 1)
    assert 0 <= result.raw <= 1


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8), st.floats(-5, 0), st.floats(-5, 0)
)
def test_a_calibration_never_trusts_the_less_sure_answer_more(
    points: list[tuple[float, float]], first: float, second: float
) -> None:
    raws, shares = sorted(raw for raw, _ in points), sorted(share for _, share in points)
    calibration = Calibration(tuple(zip(raws, shares, strict=True)))
    low, high = sorted((judged(first), judged(second)), key=lambda result: result.raw)
    assert calibration.judge(low).score <= calibration.judge(high).score + 1e-9
    assert shares[0] <= calibration.judge(low).score <= shares[-1]


def test_without_points_the_raw_figure_is_said_to_be_uncalibrated() -> None:
    judgement = Calibration(()).judge(judged(-0.1))
    assert (judgement.score, judgement.calibrated) == (judged(-0.1).raw, False)
    assert Calibration(((0.2, 0.1), (0.8, 0.9))).judge(judged(0.0)).calibrated


@pytest.mark.parametrize(
    ("before", "after"), [(b"", b""), (b"data: {}\n\n", b""), (b"", b"data: {}\n\n"), (b"data: a\n\n", b"data: b\n\n")]
)
def test_a_judgement_among_events_is_found_and_taken_out(before: bytes, after: bytes) -> None:
    told = judged(-0.5)
    assert split_judged(before + judged_event(told) + after) == (before + after, told)
    assert split_judged(before + after) == (before + after, None)


def test_a_models_text_is_not_taken_for_a_judgement() -> None:
    forged = b'data: {"content": ": judged {}"}\n\n'
    assert split_judged(forged) == (forged, None)
