from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loadtests.expert_scale.plot import plot
from loadtests.expert_scale.report import POLICY, STATIC, Case, figures, markdown, report_json, rows, verdict
from loadtests.expert_scale.run import Run, Second
from loadtests.expert_scale.scene import Scene
from loadtests.expert_scale.traffic import Where

SCENE = Scene()
CASE = Case(Where.APART, 0.7)


def run(arm: str, *, slower: float = 1.0, second_s: tuple[float, ...] = ()) -> Run:
    return Run(
        arm=arm,
        seconds=(Second(1.0, 0.05, 10, 2, 200.0, 2.5, 100), Second(2.0, 0.0, 0, 0, 0.0, 0.0, 192)),
        latency_s=slower * np.linspace(1, 101, 101),
        ended_s=np.linspace(0, 60, 101),
        cut_off=1,
        offered_tokens=200,
        made_tokens=200.0,
        lost_tokens=0.0,
        routed=SCENE.shape.zeros(),
        moves=7,
        replica_loads=0,
        changes=0,
        second_s=np.array(second_s),
    )


def test_the_figures_are_those_of_the_run() -> None:
    found = figures(SCENE, run(POLICY, second_s=(0.0, 4.0, 30.0, np.inf)))
    assert (found.p50_s, found.p95_s) == (51.0, pytest.approx(96.0))
    assert (found.hot, found.soon, found.second_s) == (4, 0.5, 30.0)
    # A second in which nothing ran says nothing about steps.
    assert (found.step_s, found.uneven) == (0.05, 2.5)
    assert found.held_most_gib == pytest.approx(192 * 232 * 3 * 7168 * 2048 / 2**30)
    assert figures(SCENE, run(POLICY, second_s=(1.0, np.inf))).second_s is None
    assert figures(SCENE, run(STATIC)).second_s is None


@pytest.mark.parametrize(
    ("slower", "told"), [(0.5, "0.50 (-50%); goal 0.50: reached"), (0.9, "0.90 (-10%); goal 0.50: missed")]
)
def test_the_verdict_is_on_the_p95(slower: float, told: str) -> None:
    both = [figures(SCENE, run(STATIC)), figures(SCENE, run(POLICY, slower=slower))]
    assert verdict(both).endswith(told)
    assert verdict(both[:1]) == ""


def test_the_report_has_every_measure_of_every_arm_and_the_picture_is_drawn(tmp_path: Path) -> None:
    found = {CASE: [run(STATIC), replace(run(POLICY), moves=77)]}
    text = markdown(SCENE, found, "python -m loadtests.expert_scale", "picture.png", 12.0)
    assert "## heat apart, load 70%" in text and "| pairs loaded by moves | 7 | 77 |" in text
    for name, _ in rows([figures(SCENE, one) for one in found[CASE]]):
        assert f"| {name.strip()} |" in text
    told = json.loads(report_json(SCENE, found, {"seed": 1}))
    assert [arm["arm"] for arm in told["cases"][0]["arms"]] == [STATIC, POLICY]
    assert told["settings"]["scene"]["nodes"] == 192
    plot(tmp_path / "picture.png", SCENE, found)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nothing to draw"):
        plot(tmp_path / "none.png", SCENE, {})
