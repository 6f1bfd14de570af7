"""A pod that Kubernetes stops: what rendered pods run before they end empties their Ray node, and no request is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import yaml

from tests.clusters import ROOT, RunningCluster, simulated_config, start_cluster, stop_cluster
from tests.faults.load import SteadyLoad, chat
from tests.integration.cluster_processes import REPLICA, title, unused_port, wait_for
from tests.integration.ray_nodes import RayNode, RayNodes

pytestmark = pytest.mark.timeout(240)

ALPHA = REPLICA.format(model="alpha")

PROGRAM = """
import json, sys
import psutil, ray
from deployments.render.drain import drain

address, socket, raylet = sys.argv[1:]
ray.init(address=address, log_to_driver=False)
node = next(node["NodeID"] for node in ray.nodes() if node["RayletSocketName"] == socket)
ray.shutdown()
def left():
    return sum("ray::ServeReplica:" in " ".join(one.cmdline()) for one in psutil.Process(int(raylet)).children(recursive=True))
print(json.dumps({"before": left(), "drained": drain(address, node, 40.0, left), "after": left()}))
"""


def drained(node: RayNode) -> dict[str, Any]:
    """Drain a node as its pod would: told where its raylet is, since here all nodes see each other's processes."""
    raylet = node.processes()[0]
    (socket,) = [one.partition("=")[2] for one in raylet.cmdline() if one.startswith("--raylet_socket_name=")]
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "POINTSMAN_", "RAY_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, node.address, socket, str(raylet.pid)],
        env=ours | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.fixture
def nodes() -> Iterator[RayNodes]:
    with RayNodes() as started:
        yield started


def replicas(node: RayNode) -> list[psutil.Process]:
    return [process for process in node.processes() if title(process).startswith(ALPHA)]


def ready(cluster: RunningCluster) -> int:
    with cluster.client() as client:
        return int(client.get("/readyz").json()["models"]["alpha"]["replicas"])


def test_a_pod_that_is_stopped_loses_no_request(nodes: RayNodes, tmp_path_factory: pytest.TempPathFactory) -> None:
    first = nodes.add(2)
    config: dict[str, Any] = simulated_config("alpha")
    config["models"]["alpha"]["engine"]["simulated"] = {"decode_step_base_s": 0.02}
    config["models"]["alpha"]["replicas"] = {"min": 1, "max": 1, "cpus": 1, "drain_timeout_s": 20}
    config["ray"] = {"address": first.address, "health_check_period_s": 1, "health_check_timeout_s": 3}
    cluster = start_cluster(config, tmp_path_factory.mktemp("drain") / "state", unused_port())
    try:
        # The first node has the ingress and a replica, so the second replica goes to the second node.
        second = nodes.add(1)
        config["models"]["alpha"]["replicas"] |= {"min": 2, "max": 2}
        cluster.config_path.write_text(yaml.safe_dump(config))
        applied = cluster.pointsman("config", "apply", str(cluster.config_path))
        assert applied.returncode == 0, applied.stderr
        wait_for(lambda: ready(cluster) == 2, 60)
        assert len(replicas(first)) == len(replicas(second)) == 1
        third = nodes.add(1)
        with SteadyLoad(cluster, chat("alpha", 40), 6.0) as load:
            told = drained(second)
        assert told == {"before": 1, "drained": True, "after": 0}
        assert len(load.outcomes) > 5 and load.failed == []
        assert len(replicas(third)) == 1 and ready(cluster) == 2
    finally:
        stop_cluster(cluster.env)
