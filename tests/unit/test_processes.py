"""Ties between real processes: who dies with whom, and who is found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from deployments.processes import (
    CLUSTER_VARIABLE,
    CORES_VARIABLE,
    OWNER_VARIABLE,
    kill_all,
    process_state,
    processes_of,
    stopped_below,
    tie_to_owner,
)

PATIENCE_S = 10.0

LINK = """
import os, subprocess, sys, time
from deployments.processes import tie_to_owner
depth = int(sys.argv[1])
print(os.getpid(), tie_to_owner(), flush=True)
if depth:
    subprocess.Popen([sys.executable, "-c", sys.argv[2], str(depth - 1), sys.argv[2]])
time.sleep(60)
"""
"""A process that ties itself to its owner and starts a chain of `depth` others."""


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid: int) -> bool:
    return process_state(pid) in {"Z", "X", None}


def start(depth: int, owner: int | None) -> subprocess.Popen[str]:
    env = {name: value for name, value in os.environ.items() if name != OWNER_VARIABLE}
    if owner is not None:
        env[OWNER_VARIABLE] = str(owner)
    return subprocess.Popen([sys.executable, "-c", LINK, str(depth), LINK], env=env, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def chain() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """An engine core and two generations of what it starts, and their process ids. This process is the owner."""
    with start(2, os.getpid()) as core:
        assert core.stdout is not None
        said = [core.stdout.readline().split() for _ in range(3)]
        pids = [int(pid) for pid, _ in said]
        try:
            assert [tied for _, tied in said] == ["True"] * 3
            yield core, pids
        finally:
            kill_all(pids, 0.0)


def test_a_worker_of_an_engine_core_lives_and_dies_with_it(chain: tuple[subprocess.Popen[str], list[int]]) -> None:
    core, pids = chain
    assert pids[0] == core.pid
    assert not any(map(gone, pids))
    core.kill()
    wait_until(lambda: all(map(gone, pids)))


def test_who_finds_its_owner_gone_ends_at_once() -> None:
    # Not the parent: as if the owner had died and somebody else had adopted the process.
    with start(0, 1 if os.getpid() != 1 else 2) as orphan:
        assert orphan.wait(PATIENCE_S) == -signal.SIGKILL


def test_nobody_is_tied_without_an_owner_or_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OWNER_VARIABLE, raising=False)
    assert not tie_to_owner()
    monkeypatch.setenv(OWNER_VARIABLE, str(os.getpid()))
    assert not tie_to_owner()
    assert os.environ[OWNER_VARIABLE] == str(os.getpid())


def test_a_process_binds_itself_and_what_it_starts() -> None:
    core = min(os.sched_getaffinity(0))
    script = (
        "import os, threading\n"
        "from deployments.processes import bind_to_cores\n"
        "bind_to_cores()\n"
        "thread = threading.Thread(target=lambda: print(sorted(os.sched_getaffinity(0))))\n"
        "thread.start(); thread.join()"
    )
    env = dict(os.environ)
    env.pop(CORES_VARIABLE, None)
    for cores, expected in (({CORES_VARIABLE: str(core)}, [core]), ({}, sorted(os.sched_getaffinity(0)))):
        done = subprocess.run(
            [sys.executable, "-c", script], env=env | cores, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == str(expected)


def test_a_stopped_process_is_found_at_any_depth(chain: tuple[subprocess.Popen[str], list[int]]) -> None:
    core, pids = chain
    assert stopped_below((core.pid,)) is None
    os.kill(pids[-1], signal.SIGSTOP)
    wait_until(lambda: stopped_below((core.pid,)) == pids[-1])
    assert stopped_below(()) is None
    os.kill(pids[-1], signal.SIGCONT)
    wait_until(lambda: stopped_below((core.pid,)) is None)


def test_processes_of_a_cluster_are_found_by_its_marker() -> None:
    env = dict(os.environ) | {CLUSTER_VARIABLE: "a" * 32}
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=env) as member:
        try:
            wait_until(lambda: processes_of("a" * 32) == (member.pid,))
            assert processes_of("b" * 32) == ()
        finally:
            member.kill()
            member.wait()
    assert processes_of("a" * 32) == ()


def test_who_ignores_a_polite_request_is_killed() -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert kill_all([process.pid], grace_s=0.1) == (process.pid,)
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
