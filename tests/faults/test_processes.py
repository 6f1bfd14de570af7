"""No process outlives its cluster, however that ends. Simulated engines: quick to start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml

from deployments.head.state import read_state
from loadtests.machine import look_at
from tests.clusters import ROOT, RunningCluster, cluster_environment, run_pointsman, simulated_config, start_cluster
from tests.faults.leftovers import Family, assert_port_free, wait_until_gone
from tests.integration.cluster_processes import replicas_of, title, unused_port, wait_for

pytestmark = pytest.mark.timeout(400)

UP_S = 120.0
INTERRUPTED, REFUSED, USAGE = 130, 3, 2


@pytest.fixture
def cluster(state_dir: Path, free_port: int) -> Iterator[RunningCluster]:
    """A cluster that the test may destroy."""
    started = start_cluster(simulated_config("alpha"), state_dir, free_port)
    yield started
    started.pointsman("down")


@contextmanager
def foreground(state_dir: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """`pointsman up --foreground`, from its first moment on."""
    config = simulated_config("alpha") | {"ingress": {"port": port}}
    path = state_dir / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    env = cluster_environment(state_dir, port)
    command = [sys.executable, "-m", "deployments.cli", "up", "--foreground", "--config", str(path)]
    with subprocess.Popen(
        command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            run_pointsman("down", env=env)


def test_kill_of_the_head_a_new_start_and_down(cluster: RunningCluster) -> None:
    family = Family.of(cluster.state_dir)
    assert len(family.seen) > 5
    os.kill(family.head, signal.SIGKILL)
    wait_until_gone(family)
    status = cluster.pointsman("status")
    assert status.returncode == REFUSED
    assert "without cleaning up" in status.stderr
    up = cluster.pointsman("up", "--config", str(cluster.config_path), timeout_s=UP_S)
    assert up.returncode == 0, up.stderr
    cluster.wait_ready(10.0)
    family = Family.of(cluster.state_dir)
    # Another start is refused: it is the same state directory.
    other = cluster.state_dir / "other.yaml"
    other.write_text(yaml.safe_dump(yaml.safe_load(cluster.config_path.read_text()) | {"name": "another"}))
    refused = cluster.pointsman("up", "--config", str(other))
    assert refused.returncode == REFUSED
    assert f"process {family.head}" in refused.stderr
    # A replica is killed right before the end, so that its replacement is on its way.
    replicas_of(cluster, "alpha")[0].kill()
    down = cluster.pointsman("down")
    assert down.returncode == 0, down.stderr
    # `down` returns once all is gone: there is nothing to wait for.
    assert family.left() == []
    assert_port_free(int(cluster.url.rpartition(":")[2]))
    assert read_state(cluster.state_dir) is None
    assert cluster.pointsman("status").returncode == REFUSED
    assert "No cluster is running" in cluster.pointsman("down").stdout


def test_ctrl_c_in_the_foreground(state_dir: Path, free_port: int) -> None:
    with foreground(state_dir, free_port) as process:
        RunningCluster(f"http://127.0.0.1:{free_port}", state_dir, state_dir, {}).wait_ready(UP_S)
        family = Family.of(state_dir)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == INTERRUPTED, output
        assert family.left() == []
        assert "nothing of it is left running" in output
    assert_port_free(free_port)
    assert read_state(state_dir) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_start_that_is_broken_off(state_dir: Path, free_port: int, number: signal.Signals) -> None:
    with foreground(state_dir, free_port) as process:
        # Ray is up, and Serve is on its way.
        wait_for(lambda: any("raylet" in title(p) for p in psutil.Process(process.pid).children(recursive=True)), UP_S)
        family = Family.of(state_dir)
        process.send_signal(number)
        process.communicate(timeout=60)
        wait_until_gone(family)
        assert process.returncode in (INTERRUPTED, -signal.SIGKILL)


def test_a_port_in_use_names_its_holder(state_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        env = cluster_environment(state_dir, port)
        path = state_dir / "config.yaml"
        path.write_text(yaml.safe_dump(simulated_config("alpha") | {"ingress": {"port": port}}))
        refused = run_pointsman("up", "--config", str(path), env=env)
    assert refused.returncode == REFUSED
    seen = look_at(os.getpid())
    assert seen is not None
    assert f"process {os.getpid()} ({psutil.Process().name()})" in refused.stderr
    assert str(port) in refused.stderr
    assert read_state(state_dir) is None


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"models": {}}, "models"),
        ({"surprise": 1}, "surprise"),
        ({"ingress": {"port": "eighty"}}, "ingress.port"),
        ({"ingress": {"host": "0.0.0.0"}, "keys": {"required": False}}, "keys"),
        ({"routing": {"code_role": "nobody"}}, "routing.code_role"),
    ],
)
def test_a_bad_config_starts_nothing(state_dir: Path, change: dict[str, object], place: str) -> None:
    path = state_dir / "config.yaml"
    path.write_text(yaml.safe_dump(simulated_config("alpha") | change))
    refused = run_pointsman("up", "--config", str(path), env=cluster_environment(state_dir, 1))
    assert refused.returncode == USAGE
    assert place in refused.stderr
    assert read_state(state_dir) is None
    assert [entry.name for entry in state_dir.iterdir()] == ["config.yaml"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_starts_and_kills(tmp_path: Path) -> None:
    """Two clusters at a time: what ends the one has to leave the other alone."""
    running = []
    for name in ("left", "right"):
        state_dir, port = tmp_path / name, unused_port()
        state_dir.mkdir(mode=0o700)
        path = state_dir / "config.yaml"
        path.write_text(yaml.safe_dump(simulated_config("alpha") | {"ingress": {"port": port}}))
        where = ["--config", str(path), "--state-dir", str(state_dir)]
        running.append(
            subprocess.Popen(
                [sys.executable, "-m", "loadtests.starts", *where, "--cycles", "25", "--blows", "head,actor,down"],
                cwd=ROOT,
                env=cluster_environment(state_dir, port),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [process.communicate(timeout=3500)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)
