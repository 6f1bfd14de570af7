from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from loadtests.machine import (
    busiest,
    cluster_processes,
    cores_used,
    engines_of_nobody,
    look_at,
    machine_cores_used,
    still_there,
    tree,
)
from loadtests.quiet import Quiet, wait_until_quiet

SPIN = "import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', 'while True: pass', 'VLLM::Fake'])\nchild.wait()"


@pytest.fixture
def spinning() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a child that burns CPU and looks like an engine, marked as a cluster's."""
    environment = os.environ | {"POINTSMAN_CLUSTER_ID": "made-up-cluster"}
    process = subprocess.Popen([sys.executable, "-c", SPIN], env=environment)
    deadline = time.monotonic() + 10
    while len(tree(process.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    pids = tree(process.pid)
    yield process
    for pid in pids:
        os.kill(pid, 9)
    process.wait()


def test_a_tree_is_found_by_parent_and_by_marker(spinning: subprocess.Popen[bytes]) -> None:
    pids = tree(spinning.pid)
    assert len(pids) == 2
    deadline = time.monotonic() + 5
    while cluster_processes().get("made-up-cluster") != pids and time.monotonic() < deadline:
        time.sleep(0.02)
    assert cluster_processes()["made-up-cluster"] == pids


def test_engines_of_nobody_are_found_unless_owned(spinning: subprocess.Popen[bytes]) -> None:
    pids = tree(spinning.pid)
    assert pids & {seen.pid for seen in engines_of_nobody(())}
    assert not pids & {seen.pid for seen in engines_of_nobody(pids)}


def test_cpu_time_shows_who_works(spinning: subprocess.Popen[bytes]) -> None:
    pids = tree(spinning.pid)
    assert cores_used(pids, 0.15) > 0.2
    assert cores_used([os.getpid()], 0.1) < 0.2
    assert machine_cores_used(0.15) > 0.2
    assert pids & {seen.pid for seen, _ in busiest(0.15, 5)}


def test_a_busy_machine_is_named(spinning: subprocess.Popen[bytes]) -> None:
    said: list[str] = []
    seen = wait_until_quiet(tree(spinning.pid), patience_s=0.0, say=said.append, window_s=0.15)
    assert not seen.resting
    assert "not quiet" in said[0]
    assert Quiet(resting_cores=0.0, machine_cores=0.1).resting


def test_a_process_is_told_from_a_later_one() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    seen = look_at(process.pid)
    assert seen is not None
    assert still_there(seen)
    process.kill()
    process.communicate()
    assert not still_there(seen)
    me = look_at(os.getpid())
    assert me is not None
    assert not still_there(type(me)(me.pid, me.started_ticks - 1, me.title))
