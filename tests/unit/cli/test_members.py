from __future__ import annotations

import os
import subprocess
import sys

import pytest

from deployments.cli.members import members_of, title_of
from deployments.processes import CLUSTER_VARIABLE

SLEEP = "import time; time.sleep(60)"
SESSION = "import subprocess, sys; [subprocess.Popen([sys.executable, '-c', sys.argv[1], t]) for t in sys.argv[2:]]"


@pytest.fixture
def leader():
    """A session whose leader, like a killed head, is gone, with one process titled as Ray's agents are, and one not."""
    leader = subprocess.Popen(
        [sys.executable, "-c", SESSION, SLEEP, "ray::DashboardAgent", "somebody else"], start_new_session=True
    )
    leader.wait()
    yield leader.pid
    os.killpg(leader.pid, 9)


def test_rays_agents_are_found_by_the_session_and_strangers_left_alone(leader):
    (agent,) = members_of("no-such-cluster", leader)
    assert title_of(agent).endswith("ray::DashboardAgent")


def test_everything_with_the_marker_is_found():
    environment = {**os.environ, CLUSTER_VARIABLE: "marked-cluster"}
    with subprocess.Popen([sys.executable, "-c", SLEEP], env=environment) as marked:
        try:
            assert members_of("marked-cluster", os.getpid()) == (marked.pid,)
        finally:
            marked.kill()


def test_a_process_that_is_gone_has_no_title():
    assert title_of(2**22 + 1) == ""
