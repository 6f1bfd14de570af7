from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from rich.table import Table

from cluster.config.load import parse_config
from loadtests.pressure_arms import ARMS, FULL, KV_ONLY, OFF, config_of, order
from loadtests.pressure_figures import ArmRun
from loadtests.pressure_plot import plot
from loadtests.pressure_report import (
    arms_table,
    goals_met,
    ratios_of,
    ratios_table,
    report_json,
    timeline_table,
    typical_round,
)
from loadtests.pressure_samples import Look, SampleError, gauge, sample_of
from tests.unit.loadtests.pressure_made import PHASES, run

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "infra" / "clusters" / "pressure.yaml"


@pytest.fixture
def runs() -> list[ArmRun]:
    found = []
    for number, (off, kv, full) in enumerate([(4, 6, 8), (5, 5, 9), (5, 6, 7)]):
        found += [
            run(OFF.name, number, off, preemptions=20),
            run(KV_ONLY.name, number, kv, preemptions=10),
            run(FULL.name, number, full),
        ]
    return found


def shown(table: Table) -> str:
    screen = Console(width=220, record=True, file=None, quiet=True)
    screen.quiet = False
    with screen.capture() as captured:
        screen.print(table)
    return captured.get()


def test_every_arm_goes_first_in_its_turn() -> None:
    orders = [order(number) for number in range(6)]
    assert all(sorted(arm.name for arm in one) == sorted(arm.name for arm in ARMS) for one in orders)
    assert len({one[0].name for one in orders[:3]} | {one[-1].name for one in orders[:3]}) == 3
    assert orders[0] == ARMS


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_the_arms_differ_in_the_ladder_alone(arm) -> None:
    base = CONFIG.read_text()
    mine, original = yaml.safe_load(config_of(base, arm)), yaml.safe_load(base)
    ladder = mine.pop("precision")
    assert ladder | {"dwell_s": 5} == ladder
    assert {name: ladder[name] for name in arm.precision} == dict(arm.precision)
    original.pop("precision")
    assert mine == original
    parse_config(config_of(base, arm), arm.name)


def test_in_the_scenarios_cluster_nobody_waits_for_memory_in_front_of_an_engine() -> None:
    config = parse_config(CONFIG.read_text(), CONFIG.name)
    most_tokens = config.models["dense"].replicas.max_ongoing_requests * 1024
    assert 2816 * config.admission.kv_overcommit >= most_tokens / 2
    assert config.models["dense"].precision.twin == "mini"
    assert config.ingress.host == "127.0.0.1"


def test_ratios_are_within_rounds(runs) -> None:
    ratios = {(one.arm, one.measure): one for one in ratios_of(runs)}
    assert ratios[FULL.name, "goodput"].rounds == pytest.approx((2.0, 1.8, 1.4))
    assert ratios[FULL.name, "goodput"].interval.median == pytest.approx(1.8)
    assert ratios[KV_ONLY.name, "preemptions_per_completed"].rounds == (0.5, 0.5, 0.5)


def test_goals_are_judged_by_the_median(runs) -> None:
    met = {(goal.arm, goal.measure): reached for goal, _, reached in goals_met(ratios_of(runs))}
    assert met[FULL.name, "goodput"] and met[KV_ONLY.name, "preemptions_per_completed"]
    assert not met[KV_ONLY.name, "tokens_per_s"] and not met[FULL.name, "total_p95_s"]


def test_a_round_without_a_baseline_does_not_count(runs) -> None:
    halved = [one for one in runs if not (one.arm == OFF.name and one.round == 1)]
    assert {len(one.rounds) for one in ratios_of(halved)} == {2}
    assert ratios_of([]) == () and typical_round([]) == []


def test_the_round_that_is_shown_is_the_middle_one(runs) -> None:
    assert [(one.round, one.arm) for one in typical_round(runs)] == [(0, arm.name) for arm in ARMS]


def test_tables_and_json_hold_what_was_measured(runs) -> None:
    arms = shown(arms_table(runs))
    assert "30" in arms and "dense: 4, mini: 0" in arms
    ratios = shown(ratios_table(ratios_of(runs)))
    assert "1.80 [1.40, 2.00]" in ratios and "reached: 1.80, at least 1.5 is the goal" in ratios
    assert "missed: 1.00, at least 1.3 is the goal" in ratios
    changes = shown(timeline_table(typical_round(runs)))
    assert "bfloat16 → fp8" in changes and "1.5 s" in changes and "120" in changes
    told = json.loads(report_json({"times": 3}, runs, ratios_of(runs)))
    assert len(told["runs"]) == 9 and told["runs"][2]["goodput"] == 0.8
    assert told["settings"] == {"times": 3}


def test_the_picture_is_drawn(runs, tmp_path) -> None:
    path = tmp_path / "folder" / "pressure.png"
    plot(path, "a title", typical_round(runs), "dense", PHASES)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000
    with pytest.raises(ValueError, match="nothing"):
        plot(path, "a title", [], "dense", PHASES)


METRICS = b"""# HELP pointsman_admission_waiting x
pointsman_admission_waiting{model="dense"} 4.0
pointsman_admission_waiting{model="mini"} 1.0
pointsman_engine_deaths_total{model="dense",cause="died"} 2.0
pointsman_engine_deaths_total{model="mini",cause="died"} 1.0
pointsman_engine_deaths_total_more 9.0
"""


def replica(**fields: object) -> dict[str, object]:
    return {
        "level": 1,
        "level_name": "conservative_sampling",
        "kv_precision": "bfloat16",
        "kv_usage": 0.5,
        "kv_blocks": 22,
        "kv_tokens": 2816,
        "running": 2,
        "waiting": 3,
        "preemptions": 5,
        "forced_preemptions": 1,
        "recomputed_tokens": 100,
        "switches": 1,
        "switching": False,
    } | fields


def test_a_sample_adds_replicas_up() -> None:
    page = {"models": {"dense": {"replicas": [replica(), replica(level=2, level_name="fp8_kv", kv_usage=0.7)]}}}
    found = sample_of(Look(1.5, json.dumps(page).encode(), METRICS))
    dense = found.models["dense"]
    assert (dense.level, dense.level_name, dense.kv_usage, dense.kv_blocks, dense.queued) == (2, "fp8_kv", 0.7, 44, 4)
    assert (dense.running, dense.preemptions, found.engine_deaths, dense.at_rest) == (4, 10, 3, False)


@pytest.mark.parametrize("page", [b"no", b"{}", b'{"models": {"dense": {"replicas": []}}}', b'{"models": 3}'])
def test_what_cannot_be_read_is_an_error(page) -> None:
    with pytest.raises(SampleError, match="/v1/precision"):
        sample_of(Look(0.0, page, b""))


def test_a_metric_that_is_not_there_is_zero() -> None:
    from cluster.telemetry.metric_table import ENGINE_DEATHS

    assert gauge("", ENGINE_DEATHS) == 0.0
