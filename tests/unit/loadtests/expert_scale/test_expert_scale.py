from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.experts.load import ExpertShape
from cluster.experts.placement import Reals, Slots
from loadtests.expert_scale.arms import Arm, Everywhere, Policy, Still, in_turn
from loadtests.expert_scale.queueing import step_s
from loadtests.expert_scale.run import Run, simulate
from loadtests.expert_scale.scene import Phase, Scene
from loadtests.expert_scale.traffic import Requests, Where, recorded, requests, routed, spread_over

SMALL = Scene(
    shape=ExpertShape(3, 16, 2),
    nodes=16,
    slots=2,
    trunks=2,
    batch=8,
    row_s=2e-3,
    tokens=20.0,
    phases=(Phase(40.0, None), Phase(20.0, "story")),
)
"""Memory for two copies of 16 experts."""


def by_heat(weights: Reals, slots: int, pools: int) -> Slots:
    found = []
    for layer in weights:
        chosen = list(np.argsort(-layer, kind="stable")) + list(np.argsort(-layer, kind="stable"))
        found.append(np.array(chosen[: slots * pools]).reshape(slots, pools).T.ravel())
    return np.array(found)


def arms() -> list[Arm]:
    return [
        Still(SMALL, "static", whole=False),
        Still(SMALL, "whole", whole=True),
        Policy(SMALL, "policy", 12, 1, by_heat),
        Policy(SMALL, "replicas", 8, 2, None),
    ]


def some_shares() -> Reals:
    found = spread_over(recorded(), SMALL.shape, Where.APART, seed=1)
    return np.stack([found[name] for name in sorted(found)])


def some_requests(per_s: float = 3.0) -> Requests:
    return requests(SMALL, sorted(recorded()), per_s, seed=2)


@pytest.fixture(scope="module", params=range(4), ids=lambda number: arms()[number].name)
def run(request: pytest.FixtureRequest) -> Run:
    return simulate(SMALL, arms()[request.param], some_requests(), some_shares(), 3, lambda _: None)


def test_no_token_is_made_twice_or_lost(run: Run) -> None:
    assert run.made_tokens + run.lost_tokens == pytest.approx(run.offered_tokens)
    assert sum(second.tokens for second in run.seconds) == pytest.approx(run.made_tokens)
    assert run.cut_off == 0 and run.lost_tokens == 0
    # Each token goes to two experts in every layer.
    assert run.routed.sum(axis=1).tolist() == [2 * run.offered_tokens] * 3


def test_every_request_ends_after_it_came(run: Run) -> None:
    assert np.isfinite(run.latency_s).all() and (run.latency_s > 0).all()


def test_all_arms_have_the_same_memory_and_none_takes_more(run: Run) -> None:
    held = {second.held for second in run.seconds}
    assert max(held) <= SMALL.nodes
    if run.arm in {"static", "whole"}:
        assert held == {SMALL.nodes}


def test_no_placement_beats_every_expert_everywhere(run: Run) -> None:
    floor = simulate(SMALL, Everywhere(SMALL, "floor"), some_requests(), some_shares(), 3, lambda _: None)
    assert floor.latency_s.mean() <= run.latency_s.mean()
    assert floor.seconds[0].held == 16 * 8


def test_a_run_is_repeatable() -> None:
    runs = [simulate(SMALL, arms()[2], some_requests(), some_shares(), 3, lambda _: None) for _ in range(2)]
    assert runs[0].seconds == runs[1].seconds
    assert runs[0].latency_s.tolist() == runs[1].latency_s.tolist()


def test_what_cannot_be_served_is_cut_off_at_the_deadline() -> None:
    slow = replace(SMALL, deadline_s=5.0, row_s=50e-3)
    run = simulate(slow, Still(slow, "static", whole=False), some_requests(10.0), some_shares(), 3, lambda _: None)
    assert run.cut_off > 0 and run.lost_tokens > 0
    assert run.latency_s.max() <= 5.0 + 1e-9
    assert run.made_tokens + run.lost_tokens == pytest.approx(run.offered_tokens)


def test_a_step_waits_for_the_slowest_replica_of_each_layer() -> None:
    scene = replace(SMALL, trunk_s=1.0, hand_over_s=0.5, fixed_s=0.25, row_s=0.125)
    rows = np.zeros((3, 16))
    rows[0, 0], rows[0, 1], rows[2, 5] = 8.0, 2.0, 4.0
    placement = in_turn(scene, 8)
    one, two = np.ones(8), np.full(8, 2.0)
    # Alone, a trunk waits for nobody: 3 layers of 1.5 s, and 8 and 4 rows at the slowest.
    assert step_s(scene, placement, one, rows, trunks=1) == pytest.approx(4.5 + (0.25 + 1.0) + (0.25 + 0.5))
    assert step_s(scene, placement, two, rows, trunks=1) == pytest.approx(4.5 + (0.25 + 0.5) + (0.25 + 0.25))
    assert step_s(scene, placement, one, rows, trunks=4) > step_s(scene, placement, one, rows, trunks=1)


def test_replicas_keep_up_with_the_steps_of_all_trunks() -> None:
    rows = np.full((3, 16), 40.0)
    placement, replicas = in_turn(SMALL, 8), np.ones(8)
    took = step_s(SMALL, placement, replicas, rows, trunks=6)
    # 6 trunks, 3 layers, 80 rows of each at every replica.
    assert took >= 5 * 3 * (SMALL.fixed_s + 80 * SMALL.row_s)


def test_slots_are_filled_in_turn() -> None:
    placement = in_turn(SMALL, 12)
    assert placement.sum(axis=2).tolist() == [[2, 2, 2]] * 12
    assert sorted(set(placement[:, 0].sum(axis=0).tolist())) == [1, 2]


def test_the_cascade_is_as_uneven_as_products_of_what_was_recorded() -> None:
    told = recorded()
    together = spread_over(told, ExpertShape(4, 256, 8), Where.MEASURED, seed=1)
    apart = spread_over(told, ExpertShape(4, 256, 8), Where.APART, seed=1)
    for name in told:
        assert together[name].sum(axis=1) == pytest.approx(np.ones(4))
        assert np.sort(together[name]).tolist() != np.sort(together[name][::-1]).tolist()
        assert together[name].max() <= told[name].max() ** 4
    likeness = [np.corrcoef(found["story"].ravel(), found["questions"].ravel())[0, 1] for found in (together, apart)]
    assert likeness[0] > 0.5 > likeness[1]
    with pytest.raises(ValueError, match="100 experts are no power of the 4"):
        spread_over(told, ExpertShape(4, 100, 8), Where.MEASURED, seed=1)


def test_traffic_concentrates_on_the_kind_of_the_phase() -> None:
    came = requests(SMALL, ["code", "questions", "story"], 100.0, seed=1)
    during = came.at_s >= 40.0
    assert (came.kind[during] == 2).mean() == pytest.approx(0.9, abs=0.02)
    assert (came.kind[~during] == 2).mean() == pytest.approx(1 / 3, abs=0.03)
    assert came.tokens.mean() == pytest.approx(20, rel=0.05) and (np.diff(came.at_s) >= 0).all()


def test_rows_of_a_token_are_top_k_in_every_layer() -> None:
    rows = routed(np.array([3, 0, 4]), some_shares(), 2, np.random.default_rng(1))
    assert rows.sum(axis=1).tolist() == [14, 14, 14]


def test_a_file_that_is_no_recording_is_named(tmp_path: Path) -> None:
    path = tmp_path / "heat.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="is no recording of experts"):
        recorded(path)
