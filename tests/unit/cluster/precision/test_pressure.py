import pytest

from cluster.precision.pressure import PressureMeter, Rates, Sample


def sample(at_s: float, preemptions: int = 0, waiting: float = 0, hits: int = 0) -> Sample:
    return Sample(at_s, 0.5, preemptions, waiting, hits)


def meter(*samples: Sample, window_s: float = 4.0) -> PressureMeter:
    made = PressureMeter(window_s)
    for one in samples:
        made.add(one)
    return made


def test_nothing_is_known_without_samples() -> None:
    assert meter().rates() == Rates(0, 0, 0)
    assert meter(sample(3, 9, 9, 9)).rates() == Rates(0, 0, 0)


def test_rates_are_taken_over_the_samples() -> None:
    rates = meter(sample(10), sample(11, 1, 5, 100), sample(12, 4, 3, 200)).rates()
    assert rates == Rates(2.0, 1.5, 100.0)


def test_one_jump_is_no_rate() -> None:
    jumped = meter(sample(0), sample(1.9, 100, 100, 100))
    assert jumped.rates() == Rates(0, 0, 0)
    jumped.add(sample(2.0, 100, 100, 100))
    assert jumped.rates().preemptions_per_s == 50


def test_what_left_the_window_counts_no_more() -> None:
    measured = meter(*(sample(second, min(second, 5) * 10, 7) for second in range(30)))
    assert measured.rates() == Rates(0, 0, 0)
    assert len(measured._samples) == 5


def test_samples_far_apart_still_make_a_rate() -> None:
    assert meter(sample(0), sample(10, 10), sample(20, 30)).rates().preemptions_per_s == 2


def test_a_queue_that_shrinks_does_not_grow() -> None:
    assert meter(sample(0, waiting=9), sample(4, waiting=1)).rates().queue_growth_per_s == 0


@pytest.mark.parametrize("after", [sample(5, 3, 0, 9), sample(5, 9, 0, 3), sample(3, 9, 0, 9)])
def test_a_new_engine_starts_a_new_window(after: Sample) -> None:
    measured = meter(sample(0), sample(4, 8, 0, 8))
    assert measured.rates().preemptions_per_s == 2
    measured.add(after)
    assert measured.rates() == Rates(0, 0, 0)
    measured.add(sample(after.at_s + 2, after.preemptions + 2, 0, after.prefix_hits))
    assert measured.rates().preemptions_per_s == 1


@pytest.mark.parametrize("window_s", [1.0, 5.0, 60.0])
def test_what_is_kept_is_bounded(window_s: float) -> None:
    measured = meter(*(sample(index * window_s / 10_000, index) for index in range(20_000)), window_s=window_s)
    assert len(measured._samples) < 1000
    assert measured.rates().preemptions_per_s == pytest.approx(10_000 / window_s, rel=0.01)


def test_samples_of_one_time_do_not_divide_by_it() -> None:
    assert meter(sample(1), sample(1, 5), sample(1, 7), window_s=1).rates() == Rates(0, 0, 0)
