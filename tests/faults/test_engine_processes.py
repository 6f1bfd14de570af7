"""The processes of a real engine: where they run, at which priority, and what is left of them. The tests run in this order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from tests.clusters import ROOT, RunningCluster, cluster_environment, local_config, start_cluster, stop_cluster
from tests.faults.leftovers import Family, wait_until_gone
from tests.faults.load import CHAT, chat
from tests.integration.cluster_processes import engine_of, ingress_of, is_engine, replicas_of, title, unused_port

pytestmark = pytest.mark.timeout(500)

CORE = 0
NICE = 4


def dense_alone(port: int) -> dict[str, object]:
    """The dense model of the default, bound and a little less urgent than everything else."""
    config = local_config()
    models = config["models"]
    assert isinstance(models, dict)
    dense = models["dense"]
    dense["roles"] = ["strong"]
    dense["replicas"] |= {"cpu_cores": str(CORE), "omp_threads": 1, "nice": NICE}
    dense["engine"]["kv_cache_bytes"] = 128 * 2**20
    return {
        "name": "dense",
        "models": {"dense": dense},
        "routing": {"fast_role": "strong", "code_role": "strong", "default_role": "strong"},
        "ingress": {"port": port},
        "ray": {"num_cpus": 4},
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    port = unused_port()
    started = start_cluster(dense_alone(port), tmp_path_factory.mktemp("dense") / "state", port)
    yield started
    stop_cluster(started.env)


def niceness_of_threads(process: psutil.Process) -> set[int]:
    return {os.getpriority(os.PRIO_PROCESS, thread.id) for thread in process.threads()}


def test_the_engine_computes_on_its_core_and_gives_way_to_the_request_path(cluster: RunningCluster) -> None:
    with cluster.client() as client:
        assert client.post(CHAT, json=chat("dense", 16)).status_code == 200
    engine, ingress = engine_of(cluster, "dense"), ingress_of(cluster)
    assert niceness_of_threads(engine) == {NICE}
    assert set(niceness_of_threads(ingress)) == {0}
    # Threads that compute have used most of the process's time; what only waits need not be bound.
    busiest = max(engine.threads(), key=lambda thread: thread.user_time)
    assert os.sched_getaffinity(busiest.id) == {CORE}
    assert len(os.sched_getaffinity(ingress.pid)) == os.cpu_count()


def test_the_engine_is_one_process(cluster: RunningCluster) -> None:
    """Its worker is inside: a second one would spin, and starve everything else of two cores."""
    (replica,) = replicas_of(cluster, "dense")
    titles = {title(process): is_engine(process) for process in replica.children(recursive=True)}
    # A worker may be called anything that vLLM likes, or nothing; of Python's own helpers there is one.
    computing = [name for name in titles if "resource_tracker" not in name]
    assert [titles[name] for name in computing] == [True], titles


def test_a_killed_head_leaves_no_engine_behind(cluster: RunningCluster) -> None:
    family = Family.of(cluster.state_dir)
    engine = engine_of(cluster, "dense")
    assert engine.pid in {seen.pid for seen in family.seen}
    os.kill(family.head, signal.SIGKILL)
    wait_until_gone(family)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_starts_and_kills_of_a_real_engine(state_dir: Path, free_port: int) -> None:
    """Each way to end it once. The fifty are in `test_processes.py`, with engines that start in no time."""
    path = state_dir / "config.yaml"
    path.write_text(yaml.safe_dump(dense_alone(free_port)))
    where = ["--config", str(path), "--state-dir", str(state_dir)]
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.starts", *where, "--cycles", "4"],
        cwd=ROOT,
        env=cluster_environment(state_dir, free_port),
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
