from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from loadtests.bench_report import comparison_table, plot_pairs, report_json
from loadtests.pairs import Pair, compare, orders, run_pair, unfair
from loadtests.records import Arrival, RequestRecord, RunSummary, summarise
from loadtests.series import shape_for


def summary(rate: float, ttft: float = 0.2, gap: float = 0.02) -> RunSummary:
    record = RequestRecord(
        0.0,
        100 / rate,
        200,
        None,
        ttft,
        10,
        100,
        (Arrival(ttft, 1), Arrival(gap, 1)),
        tokens_exact=True,
        finish_reason="length",
    )
    return summarise([record], streams=1, client_cpu_s=0.0)


def pair(number: int, baseline: float, measured: float) -> Pair:
    return Pair(16, number, number % 2 == 1, summary(baseline), summary(measured, ttft=0.25, gap=0.03))


def test_the_arm_that_goes_first_alternates() -> None:
    assert list(orders(5)) == [False, True, False, True, False]
    calls: list[bool] = []

    def run(measured: bool) -> RunSummary:
        calls.append(measured)
        return summary(2.0 if measured else 1.0)

    for number, first in enumerate(orders(2)):
        made = run_pair(1, number, first, run)
        assert (made.baseline.tokens_per_s, made.measured.tokens_per_s) == pytest.approx((1.0, 2.0))
    assert calls == [False, True, True, False]


def test_ratios_are_medians_of_pairs_not_ratios_of_medians() -> None:
    found = compare([pair(0, 100.0, 95.0), pair(1, 200.0, 180.0), pair(2, 400.0, 400.0)])
    assert found.tokens_per_s.median == pytest.approx(0.95)
    assert (found.tokens_per_s.low, found.tokens_per_s.high) == pytest.approx((0.9, 1.0))
    assert found.ttft_p50.median == pytest.approx(1.25)
    assert found.ttft_p50_difference_s.median == pytest.approx(0.05)
    assert found.gap_p50.median == pytest.approx(1.5)
    assert found.pairs == 3


def test_arms_that_did_other_work_are_not_compared() -> None:
    good = summary(10.0)
    assert unfair(Pair(1, 0, False, good, good)) == []
    for broken in (
        replace(good, errors={"timeout": 1}),
        replace(good, completion_tokens=99),
        replace(good, prompt_tokens=9),
    ):
        assert unfair(Pair(1, 0, False, good, broken))
        assert unfair(Pair(1, 0, False, broken, good))
    with pytest.raises(ValueError, match="one number of streams"):
        compare([])


def test_reports_show_ratio_and_interval(tmp_path: Path) -> None:
    pairs = [pair(n, 100.0, 90.0 + n) for n in range(3)]
    found = [compare(pairs)]
    screen = Console(width=120, record=True, file=(tmp_path / "out").open("w"))
    screen.print(comparison_table("title", "bare", "cluster", found))
    assert "0.910 [0.900, 0.920]" in screen.export_text()
    screen.file.close()
    plot_pairs(tmp_path / "made" / "pairs.png", "title", pairs, found)
    assert (tmp_path / "made" / "pairs.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads(report_json({"seed": 1}, pairs, found))
    assert report["pairs"][0]["baseline"]["tokens_per_s"] == pytest.approx(100.0)


@pytest.mark.parametrize(("streams", "requests"), [(1, 7), (16, 64), (64, 128)])
def test_runs_are_about_as_long_as_asked(streams: int, requests: int) -> None:
    assert shape_for(streams, max_tokens=64, seconds=10.0).requests == requests
