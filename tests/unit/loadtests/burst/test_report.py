from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from loadtests.burst.figures import ArmRun
from loadtests.burst.plot import plot
from loadtests.burst.report import (
    P95,
    arms_table,
    hot_table,
    ratios_of,
    ratios_table,
    report_json,
    sentence,
    without_second,
)
from tests.unit.loadtests.burst.made import PHASES, run


@pytest.fixture
def runs() -> list[ArmRun]:
    return [
        made
        for number, (static, replicated) in enumerate([(10.0, 4.0), (10.0, 5.0), (10.0, 6.0)])
        for made in (run("static", number, static), run("replicated", number, replicated, hot=True))
    ]


def shown(table: Table) -> str:
    screen = Console(width=200)
    with screen.capture() as captured:
        screen.print(table)
    return captured.get()


def test_ratios_are_those_of_the_same_round(runs: list[ArmRun]) -> None:
    (p95,) = (one for one in ratios_of(runs) if one.measure == P95)
    assert p95.rounds == pytest.approx((0.4, 0.5, 0.6)) and p95.interval.median == pytest.approx(0.5)
    (of_two,) = (one for one in ratios_of(runs[:5]) if one.measure == P95)
    assert of_two.rounds == pytest.approx((0.4, 0.5))


def test_the_sentence_holds_both_goals_against_what_was_measured(runs: list[ArmRun]) -> None:
    said = sentence(runs)
    assert "5.0 s with replicas by heat, 10.0 s without: 0.50" in said and "(goal 0.70: reached)" in said
    assert "(goal 10 s: reached)" in said and "simulated" not in said
    assert "missed" in sentence([run("static", 0, 10.0), run("replicated", 0, 9.0)])
    assert "no pool had a second replica" in sentence([run("static", 0, 10.0), run("replicated", 0, 9.0)])
    assert "no round" in sentence(runs[:1])


def test_one_round_has_no_interval(runs: list[ArmRun]) -> None:
    assert "0.50 [" in sentence(runs) and "0.40 of it" in sentence(runs[:2])
    assert "[" not in shown(ratios_table(runs[:2])).replace("[95 %]", "")


def test_simulated_runs_say_so_in_every_title_and_are_never_mixed_with_real_ones(runs: list[ArmRun]) -> None:
    simulated = [run("static", 0, 10.0, simulated=True), run("replicated", 0, 4.0, hot=True, simulated=True)]
    for table in (arms_table(simulated), hot_table(simulated), ratios_table(simulated)):
        assert "(simulated engine)" in " ".join(shown(table).split())
    assert "(simulated engine)" in sentence(simulated)
    assert json.loads(report_json({}, simulated))["simulated"] is True
    with pytest.raises(ValueError, match="simulated"):
        sentence([*runs, *simulated])


def test_tables_tell_of_latencies_replicas_and_memory(runs: list[ArmRun]) -> None:
    text = shown(arms_table(runs))
    assert "p95, surge of stories" in text and "weights of all pools at most" in text and "0: 1, 1: 1" in text
    assert "14.0 s" in shown(hot_table(runs)) and "it was hot" in shown(hot_table(runs))
    assert "0.50" in shown(ratios_table(runs))
    assert without_second(runs) == []


def test_the_json_has_all_figures(runs: list[ArmRun]) -> None:
    found = json.loads(report_json({"seed": 1}, runs))
    assert found["simulated"] is False and found["settings"] == {"seed": 1}
    assert len(found["runs"]) == 6 and found["runs"][1]["figures"]["hot"][0]["pool"] == "0"
    assert found["seconds_to_second_replica"] == pytest.approx([7.0] * 3)


def test_the_picture_is_written(runs: list[ArmRun], tmp_path: Path) -> None:
    plot(tmp_path / "new" / "burst.png", "burst", runs[:2], PHASES)
    assert (tmp_path / "new" / "burst.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nothing"):
        plot(tmp_path / "burst.png", "burst", [], PHASES)
