"""What is under way when a cluster is told to stop is finished first. Simulated engines: quick to start."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.clusters import ROOT, simulated_config, start_cluster, stop_cluster
from tests.faults.leftovers import Family
from tests.faults.load import CHAT, Streamed, chat
from tests.integration.cluster_processes import wait_for

pytestmark = pytest.mark.timeout(300)

STEP_S = 0.05
ANSWER_TOKENS = 160
"""Eight seconds of answer: more than it takes to tell everybody to stop."""
DRAIN_S = 60
LAME_DUCK_S = 6


def test_down_finishes_what_is_under_way(state_dir: Path, free_port: int) -> None:
    config = simulated_config("alpha")
    models = config["models"]
    assert isinstance(models, dict)
    models["alpha"]["engine"]["simulated"] = {"decode_step_base_s": STEP_S, "decode_step_per_seq_s": 0}
    models["alpha"]["replicas"] |= {"min": 2, "max": 2, "drain_timeout_s": DRAIN_S}
    cluster = start_cluster(config, state_dir, free_port)
    try:
        family = Family.of(state_dir)
        streams = [Streamed(cluster, chat("alpha", ANSWER_TOKENS)) for _ in range(4)]
        wait_for(lambda: all(stream.texts > 3 for stream in streams), 30.0)
        began = time.monotonic()
        command = [sys.executable, "-m", "deployments.cli", "down"]
        with subprocess.Popen(command, env=cluster.env, cwd=ROOT, stdout=subprocess.PIPE, text=True) as down:
            for stream in streams:
                stream.join()
            # They ended because they were whole, not because they were cut off.
            assert [stream.error for stream in streams] == [None] * 4
            assert [stream.done for stream in streams] == [True] * 4
            # The first event of each names the role.
            assert {stream.texts for stream in streams} == {ANSWER_TOKENS + 1}
            # It was told to stop in the midst of them.
            assert min(stream.ended_at or 0.0 for stream in streams) > began + 1.0
            output, _ = down.communicate(timeout=60)
            assert down.returncode == 0, output
        assert family.left() == []
    finally:
        stop_cluster(cluster.env)


def test_a_lame_duck_says_so_and_answers(state_dir: Path, free_port: int) -> None:
    config = simulated_config("alpha")
    config["ingress"] = {"lame_duck_s": LAME_DUCK_S}
    cluster = start_cluster(config, state_dir, free_port)
    command = [sys.executable, "-m", "deployments.cli", "down"]
    try:
        family = Family.of(state_dir)
        statuses = []
        with cluster.client() as client:
            assert client.get("/readyz?exclude=models").status_code == 200
            with subprocess.Popen(command, env=cluster.env, cwd=ROOT, stdout=subprocess.PIPE, text=True) as down:
                wait_for(lambda: client.get("/readyz?exclude=models").status_code == 503, 20.0)
                said = time.monotonic()
                told = client.get("/readyz")
                assert (told.status_code, told.json()["status"]) == (503, "stopping")
                assert client.get("/livez").status_code == 200
                # Models are there until its port closes.
                with contextlib.suppress(httpx.ConnectError):
                    while time.monotonic() < said + 5 * LAME_DUCK_S:
                        answer = client.post(CHAT, json=chat("alpha", 2))
                        statuses.append((answer.status_code, answer.headers.get("connection")))
                        time.sleep(0.1)
                assert LAME_DUCK_S - 2 < time.monotonic() - said < LAME_DUCK_S + 10
                output, _ = down.communicate(timeout=60)
                assert down.returncode == 0, output
        assert len(statuses) > 10
        assert {status for status, _ in statuses} == {200}
        # Whoever keeps connections open is sent away.
        assert statuses[-1][1] == "close"
        assert family.left() == []
    finally:
        stop_cluster(cluster.env)


def test_down_does_not_wait_longer_than_the_drain_timeout(state_dir: Path, free_port: int) -> None:
    config = simulated_config("alpha")
    models = config["models"]
    assert isinstance(models, dict)
    models["alpha"]["engine"]["simulated"] = {"decode_step_base_s": 0.5, "decode_step_per_seq_s": 0}
    models["alpha"]["replicas"] |= {"drain_timeout_s": 2}
    config["contracts"] = {"strong": {"max_completion_tokens": 400, "max_prompt_tokens": 400, "timeout_s": 200}}
    cluster = start_cluster(config, state_dir, free_port)
    try:
        family = Family.of(state_dir)
        # Two hundred seconds of answer.
        stream = Streamed(cluster, chat("alpha", 400), timeout_s=120.0)
        wait_for(lambda: stream.texts > 1, 30.0)
        down = cluster.pointsman("down", timeout_s=120.0)
        assert down.returncode == 0, down.stderr
        stream.join()
        # It breaks off, and never says that it is whole.
        assert not stream.done
        assert stream.broken or stream.error is not None
        assert family.left() == []
    finally:
        stop_cluster(cluster.env)
