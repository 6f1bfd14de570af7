from __future__ import annotations

import random
import subprocess
import uuid
from pathlib import Path

import pytest

from deployments.head.state import read_state, remove_state
from deployments.processes import kill_all
from loadtests import starts
from loadtests.machine import look_at, tree
from loadtests.starts import Blow, Cycle, cycles_table, run_cycle
from tests.unit.loadtests.fake_cluster import spawn_head


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[str]:
    """Puts a made-up command line in place of the real one; returns the commands it was given."""
    commands: list[str] = []
    heads: list[subprocess.Popen[bytes]] = []

    def pointsman(*arguments: str, timeout_s: float = 0.0) -> subprocess.CompletedProcess[str]:
        commands.append(arguments[0])
        state_dir = Path(arguments[-1])
        state = read_state(state_dir)
        if arguments[0] == "up":
            heads.append(spawn_head(state_dir, request.param, uuid.uuid4().hex))
        elif state is not None:
            kill_all(tree(state.pid) if request.param == "tidy" else {state.pid}, grace_s=1.0)
            remove_state(state_dir)
        for head in heads:
            head.poll()
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(starts, "pointsman", pointsman)
    return commands


def cycle(blow: Blow, state_dir: Path) -> Cycle:
    return run_cycle(0, blow, Path("made-up.yaml"), state_dir, patience_s=0.6, source=random.Random(0))


@pytest.mark.parametrize("cluster", ["tidy"], indirect=True)
@pytest.mark.parametrize("blow", list(Blow))
def test_a_tidy_cluster_leaves_nothing(cluster: list[str], blow: Blow, tmp_path: Path) -> None:
    seen = cycle(blow, tmp_path)
    assert seen.clean, seen
    assert seen.processes >= 3
    assert seen.gone_s is not None
    assert (seen.orphans_s is not None) == (blow in (Blow.ACTOR, Blow.ENGINE))
    assert cluster[0] == "up"
    assert cycles_table([seen]).row_count == 1


@pytest.mark.parametrize("cluster", ["leaky"], indirect=True)
@pytest.mark.parametrize("blow", [Blow.HEAD, Blow.ACTOR, Blow.DOWN])
def test_an_engine_left_behind_is_found_named_and_killed(cluster: list[str], blow: Blow, tmp_path: Path) -> None:
    seen = cycle(blow, tmp_path)
    assert not seen.clean
    assert seen.gone_s is None
    assert [left.title.split()[0] for left in seen.left] == ["VLLM::EngineCore"]
    assert all(look_at(left.pid) is None for left in seen.left)
    assert bool(seen.problem) == (blow is Blow.ACTOR)


@pytest.mark.parametrize("cluster", ["tidy"], indirect=True)
def test_a_cluster_that_starts_beside_it_is_none_of_its_concern(
    cluster: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one starts after this one has looked at what runs, so it knows it by its marker alone."""
    other = tmp_path / "other"
    other.mkdir()
    heads = []
    command = starts.pointsman

    def pointsman(*arguments: str, timeout_s: float = 0.0) -> subprocess.CompletedProcess[str]:
        if arguments[0] == "up":
            heads.append(spawn_head(other, "tidy", uuid.uuid4().hex))
        return command(*arguments, timeout_s=timeout_s)

    monkeypatch.setattr(starts, "pointsman", pointsman)
    try:
        seen = cycle(Blow.DOWN, tmp_path)
        assert seen.clean, seen
        assert heads[0].poll() is None
    finally:
        kill_all({pid for head in heads for pid in tree(head.pid)}, grace_s=1.0)
        for head in heads:
            head.wait()
