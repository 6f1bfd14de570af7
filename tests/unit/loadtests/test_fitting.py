from __future__ import annotations

import pytest

from deployments.engines.simulated.core import Bounds, Costs
from loadtests.fit_simulated import median_decode
from loadtests.fitting import DecodePoint, PrefillPoint, check, fit

TRUTH = Costs(prefill_tokens_per_s=2500.0, decode_step_base_s=0.018, decode_step_per_seq_s=0.0009)
ROOMY = Bounds(kv_blocks=4096, kv_block_tokens=128, max_num_seqs=32, max_num_batched_tokens=2048)


def decode_point(streams: int, **changes: float) -> DecodePoint:
    settings: dict[str, float] = {"step_s": 0.018 + 0.0009 * streams, "tokens_per_s": 1.0, "ttft_p50_s": 0.1}
    return DecodePoint(streams, requests=streams * 2, prompt_tokens=50, max_tokens=32, **(settings | changes))


def prefill_point(tokens: int) -> PrefillPoint:
    return PrefillPoint(tokens, 0.030 + tokens / 2500)


def test_known_costs_are_found_again() -> None:
    found = fit([decode_point(n) for n in (1, 2, 4, 8, 16, 32)], [prefill_point(n) for n in (64, 256, 1024)])
    assert found.prefill_tokens_per_s == pytest.approx(2500.0)
    assert found.decode_step_base_s == pytest.approx(0.018)
    assert found.decode_step_per_seq_s == pytest.approx(0.0009)


def test_what_the_simulated_engine_measures_fits_itself() -> None:
    measured = [
        decode_point(point.streams, step_s=found.step_s, tokens_per_s=found.tokens_per_s, ttft_p50_s=found.ttft_p50_s)
        for point in map(decode_point, (1, 2, 8, 16))
        for found in check(TRUTH, ROOMY, [point])
    ]
    found = fit(measured, [prefill_point(n) for n in (64, 1024)])
    assert [one.error for one in check(found, ROOMY, measured)] == pytest.approx([0.0] * 4, abs=0.01)


def test_one_stream_alone_takes_the_time_that_the_costs_say() -> None:
    (found,) = check(TRUTH, ROOMY, [decode_point(1)])
    assert found.step_s == pytest.approx(0.0189)
    assert found.ttft_p50_s == pytest.approx(0.018 + 50 / 2500)
    seconds = found.ttft_p50_s + 31 * 0.0189
    assert found.tokens_per_s == pytest.approx(32 / seconds)


@pytest.mark.parametrize(
    ("decode", "prefill"),
    [
        ([decode_point(4)], [prefill_point(1), prefill_point(2)]),
        ([decode_point(1), decode_point(4)], [prefill_point(7), prefill_point(7)]),
        ([decode_point(1), decode_point(4)], [PrefillPoint(10, 0.2), PrefillPoint(1000, 0.1)]),
    ],
)
def test_too_little_to_fit_is_refused(decode: list[DecodePoint], prefill: list[PrefillPoint]) -> None:
    with pytest.raises(ValueError, match="measure"):
        fit(decode, prefill)


def test_one_busy_round_does_not_move_a_point() -> None:
    rounds = [decode_point(4, step_s=step, tokens_per_s=4 / step) for step in (0.02, 0.09, 0.021)]
    assert median_decode(rounds).step_s == 0.021
    assert median_decode(rounds).tokens_per_s == pytest.approx(4 / 0.021)
