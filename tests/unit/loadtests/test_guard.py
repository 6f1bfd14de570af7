from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadtests.machine import Seen, look_at, still_there, tree

# A server that ignores SIGTERM's usual meaning: it starts an engine in a session of its own and then sleeps.
SERVER = (
    "import subprocess, sys, time\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
    "time.sleep(600)\n"
)
OWNER = (
    "import os, subprocess, sys, time\n"
    "subprocess.Popen([sys.executable, '-m', 'loadtests.guard', str(os.getpid()), sys.executable, '-c', sys.argv[1]])\n"
    "time.sleep(600)\n"
)
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}


def processes(root: int, count: int) -> list[Seen]:
    deadline = time.monotonic() + 15
    while len(tree(root)) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    return [seen for seen in map(look_at, tree(root)) if seen is not None]


def wait_gone(seen: list[Seen]) -> bool:
    deadline = time.monotonic() + 15
    while any(map(still_there, seen)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(still_there, seen))


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_an_owner_that_is_killed(blow: signal.Signals) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, SERVER], env=ENVIRONMENT)
    seen = processes(owner.pid, 4)
    assert len(seen) == 4
    owner.send_signal(blow)
    owner.wait()
    assert wait_gone(seen)


@pytest.mark.parametrize("victim", ["guard", "server"])
def test_an_engine_goes_with_its_server(victim: str) -> None:
    command = [sys.executable, "-m", "loadtests.guard", str(os.getpid()), sys.executable, "-c", SERVER]
    guard = subprocess.Popen(command, env=ENVIRONMENT)
    seen = processes(guard.pid, 3)
    assert len(seen) == 3
    if victim == "guard":
        guard.terminate()
    else:
        os.kill(min(one.pid for one in seen if one.pid != guard.pid), signal.SIGKILL)
    assert guard.wait(timeout=15) != 0
    assert wait_gone(seen)


def test_a_wrong_call_says_how_to_call_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.guard", "x"], env=ENVIRONMENT, capture_output=True, check=False
    )
    assert done.returncode == 2
    assert b"usage" in done.stderr
